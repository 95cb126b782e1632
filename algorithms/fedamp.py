"""FedAMP: Personalized Cross-Silo Federated Learning on Non-IID Data, by attentive message passing.

Y. Huang, L. Chu, Z. Zhou, L. Wang, J. Liu, J. Pei, Y. Zhang. AAAI 2021. https://arxiv.org/abs/2007.03797

    server:    u_i = (1 - sum_j a_ij) w_i + sum_j a_ij w_j,   a_ij = alpha / sigma exp(-|w_i - w_j|^2 / sigma)
    client i:  w_i = local epochs of SGD, from w_i, on its own loss + lamda / (2 alpha) |w_i - u_i|^2

j are the other clients of the round before, whose models have just arrived; u_i = w_i in the first round. Where the sum
of the a_ij is above 1 they are scaled to sum to 1: beyond that u_i is no average any more, and models diverge (the paper
assumes a small alpha). The pull in PFLlib has no effect (it is taken of detached tensors), so that its FedAMP is local
training.

Down: u_i; up: w_i. Kept by a client: its model, by the server a copy of it. A client is evaluated with its own model. As
costly as FedAvg. Distances between models of n parameters grow with n: ``sigma`` must fit the model.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    ClientRows,
    FederatedAlgorithm,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.search_space import Range, Tuned


class FedAMP(FederatedAlgorithm):
    """Each client is drawn to an average of the models that are like its own."""

    paper = "https://arxiv.org/abs/2007.03797"
    about = About(
        "mixing",
        sent="S, another one down for each client",
        kept="its whole model; a copy by the server",
        evaluated="its own model",
        cost="1",
    )
    uploads = {"shared": Upload("uniform"), "own": Upload("each")}
    shares_nothing = True
    told_in_evaluation = False
    whole_model_kept = "its clients keep a whole model of their own"
    trains_own_model = True

    alpha: Annotated[float, Tuned(Range(0.01, 1.0, log=True), "a factor of 10 around the default")] = Field(0.1, gt=0)
    """The paper's alpha_k, the server's step towards similar models."""
    sigma: Annotated[float, Tuned(Range(0.1, 100.0, log=True), "squared distances of small and of large models")] = (
        Field(1.0, gt=0)
    )
    """Models whose squared distance is much larger have no part in each other."""
    lamda: Annotated[float, Tuned(Range(0.01, 1.0, log=True), "pulls of 0.1 to 10 times alpha")] = Field(0.1, gt=0)
    """The paper's lambda; the strength of the pull is lamda / alpha."""

    def personal_patterns(self) -> list[str]:
        return ["*"]

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"models": torch.empty(0, len(ctx.initial)), "ids": torch.empty(0, dtype=torch.int64)}

    def server_row(self, ctx: ServerContext) -> Tensors:
        return {"own": ctx.initial}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        own, models = clients.rows["own"].double(), server_state["models"].double()
        squared = own.square().sum(dim=1)[:, None] + models.square().sum(dim=1) - 2 * own @ models.T
        attention = self.alpha / self.sigma * torch.exp(-squared.clamp(min=0) / self.sigma)
        attention = attention * (clients.ids[:, None] != server_state["ids"])
        attention = attention / attention.sum(dim=1, keepdim=True).clamp(min=1)
        others = attention @ models
        return {"cloud": (1 - attention.sum(dim=1, keepdim=True)) * own + others}

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        own = clients.uploads["own"]
        return mean["shared"], {"models": own, "ids": clients.ids}, {"own": own}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        theta = state["personal"]
        return {"theta": theta, "cloud": state["cloud"], "optimizer": ctx.optimizer.of_own_model().init(theta)}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        gradient, loss = ctx.gradient(carry["theta"], batch)
        pull = self.lamda / self.alpha * ctx.trained(carry["theta"] - carry["cloud"])
        theta, optimizer = ctx.optimizer.of_own_model().step(carry["theta"], gradient + pull, carry["optimizer"])
        return {**carry, "theta": theta, "optimizer": optimizer}, {"loss": loss}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        return {**uploads, "own": carry["theta"]}, state
