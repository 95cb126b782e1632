"""FedDyn: Federated Learning Based on Dynamic Regularization.

D. A. E. Acar, Y. Zhao, R. Matas, M. Mattina, P. Whatmough, V. Saligrama. ICLR 2021. https://arxiv.org/abs/2111.04263

    client i, for each batch:  w_i = w_i - lr (g(w_i) - l_i + alpha (w_i - w))
    at the end of the round:   l_i = l_i - alpha (w_i - w)
    server:                    h = h - alpha / N sum_i (w_i - w),  w = mean_i w_i - h / alpha

Down and up: the shared parameters, with equal weights. Kept by a client: l_i. As costly as FedAvg. A client
that drops out changes its l_i, of which the server does not learn.

The pull is the gradient of the squared distance, as in the paper and the authors' code (PFLlib has the distance itself,
FL-bench none). alpha is the same for all clients, as in the paper; the authors' code divides it by the client's share
of the samples and clips gradients (``train.optimizer.clip_norm: 10``). Where it diverges, a client whose parameters
no longer fit into the exact sum is rejected and counted, and the run stops if the server's are not finite.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    FederatedAlgorithm,
    ParameterLayout,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.search_space import Tuned


class FedDyn(FederatedAlgorithm):
    """A dynamic regulariser per client makes local optima agree with the global one."""

    paper = "https://arxiv.org/abs/2111.04263"
    about = About("optimization", sent="S", kept="its linear term", evaluated="as it is", cost="1")
    uploads = {"shared": Upload("uniform")}

    alpha: Annotated[float, Tuned([0.001, 0.01, 0.1], "a factor of 10 around the authors' 0.01")] = Field(0.01, gt=0)
    """Strength of the regulariser; 0.01 in the authors' examples."""

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"h": torch.zeros_like(shared)}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        share = ctx.num_reported / ctx.num_clients
        h = server_state["h"] - self.alpha * share * (mean["shared"] - shared)
        return mean["shared"] - h / self.alpha, {"h": h.float()}

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        shared, personal = layout.split(theta)
        return {"personal": personal, "linear": torch.zeros_like(shared)}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        return {**super().client_init(state, ctx), "linear": state["linear"]}

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        gradient, loss = ctx.gradient(carry["theta"], batch)
        return gradient + self.alpha * ctx.drift(carry["theta"]) - ctx.on_shared(carry["linear"]), loss

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        linear = carry["linear"] - self.alpha * ctx.trained(uploads["shared"] - ctx.broadcast["shared"])
        return uploads, {**state, "linear": linear}
