"""SCAFFOLD: Stochastic Controlled Averaging for Federated Learning.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh. ICML 2020. https://arxiv.org/abs/1910.06378

    client i, for each batch:  w_i = w_i - lr (g(w_i) - c_i + c)
    at the end of the round:   c_i+ = c_i - c + (w - w_i) / (lr K_i)        (option II of the paper; K_i local steps)
    server:                    w = w + server_lr mean_i(w_i - w),  c = c + |S| / N mean_i(c_i+ - c_i)

Down: shared parameters w and control variate c. Up: w_i and the change of c_i, both with equal weights, as in the
paper; |S| are the clients whose uploads arrived. So twice what FedAvg sends, at the cost of FedAvg. Kept by a client:
c_i. K_i is the number of steps that the client does, stragglers fewer; with momentum it is the weight with which their
gradients count. A client that drops out changes its c_i, of which the server does not learn.
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
from raysim.search_space import Range, Tuned


class Scaffold(FederatedAlgorithm):
    """Control variates on server and clients correct each local step for the client's drift."""

    paper = "https://arxiv.org/abs/1910.06378"
    about = About("optimization", sent="2 S", kept="its control variate", evaluated="as it is", cost="1")
    uploads = {"shared": Upload("uniform"), "control_change": Upload("uniform", scale_bits=48)}
    local_optimizers = ("sgd",)

    server_lr: Annotated[float, Tuned(Range(0.1, 10.0, log=True), "a factor of 10 around the paper's 1")] = Field(
        1.0, gt=0
    )
    """The server's step on the mean update; 1 in the paper's experiments."""

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"control": torch.zeros_like(shared)}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, **server_state}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        change = ctx.num_reported / ctx.num_clients * mean["control_change"]
        new = shared + self.server_lr * (mean["shared"] - shared)
        return new, {"control": (server_state["control"] + change).float()}

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        shared, personal = layout.split(theta)
        return {"personal": personal, "control": torch.zeros_like(shared)}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        return {**super().client_init(state, ctx), "control": state["control"]}

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        gradient, loss = ctx.gradient(carry["theta"], batch)
        return gradient + ctx.on_shared(ctx.broadcast["control"] - carry["control"]), loss

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        weight = ctx.optimizer.lr * ctx.optimizer.total_weight(ctx.client.num_steps)
        change = ctx.trained((ctx.broadcast["shared"] - uploads["shared"]) / weight - ctx.broadcast["control"])
        return {**uploads, "control_change": change}, {**state, "control": carry["control"] + change}
