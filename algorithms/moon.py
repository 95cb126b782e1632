"""MOON: Model-Contrastive Federated Learning.

Q. Li, B. He, D. Song. CVPR 2021. https://arxiv.org/abs/2103.16257

    client i:  w_i = w after local epochs of SGD on  CE(x, y) + mu CE([cos(z, z_w), cos(z, z_old)] / tau, class 0)
    server:    w   = sum_i n_i w_i / sum_i n_i

z is the representation, z_w that of the model as received, z_old that of the client's model after its last training
(before that, of the initial model). As in PFLlib it is contrasted as it is; the authors' models have a projection head
of two layers before the classifier, which a timm model has not.

Down and up: the shared parameters. Kept by a client: its last model. Two more forward passes per batch: 1.7 times the
cost of FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    F,
    FederatedAlgorithm,
    ParameterLayout,
    Tensor,
    Tensors,
    torch,
)
from raysim.search_space import Range, Tuned


class MOON(FederatedAlgorithm):
    """A contrastive loss draws a client's representation to the server's and away from its own last one."""

    paper = "https://arxiv.org/abs/2103.16257"
    about = About("optimization", sent="S", kept="its last model", evaluated="as it is", cost="1.7")
    uses_features = True
    needs_body = True

    mu: Annotated[float, Tuned(Range(0.1, 10.0, log=True), "around the authors' 1, 5 and 10")] = Field(1.0, gt=0)
    """Weight of the contrastive loss; the authors have 5 for CIFAR-10 and 1 for CIFAR-100."""
    tau: Annotated[float, Tuned([0.1, 0.5, 1.0], "around the default")] = Field(0.5, gt=0)
    """Temperature."""

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"personal": layout.split(theta)[1], "old": theta.clone()}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        return {**super().client_init(state, ctx), **state}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        z_w = ctx.features(ctx.layout.join(ctx.broadcast["shared"], carry["personal"]), batch.images)
        z_old = ctx.features(carry["old"], batch.images)
        similarities = torch.stack([F.cosine_similarity(z, z_w), F.cosine_similarity(z, z_old)], dim=1)
        contrastive = F.cross_entropy(similarities / self.tau, torch.zeros_like(batch.labels), reduction="none")
        loss = F.cross_entropy(ctx.head(theta, z), batch.labels, reduction="none")
        return loss + self.mu * contrastive, ()

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        return uploads, {**state, "old": carry["theta"]}
