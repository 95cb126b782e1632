"""DBE: Eliminating Domain Bias for Federated Learning in Representation Space.

J. Zhang, Y. Hua, J. Cao, H. Wang, T. Song, Z. Xue, R. Ma, H. Guan. NeurIPS 2023. https://arxiv.org/abs/2311.14975

    before round 0:  every client trains from the initial model, with the running mean m_i of its representations z,
                     and forgets what it trained;  M = sum_i n_i m_i / sum_i n_i, which stays
    client i:        w_i = w and b_i after local epochs of SGD on
                         CE(head(z + b_i), y) + kappa mean((m_i - M)^2) / 2,  m_i = (1 - momentum) m_i + momentum mean(z)
    server:          w = sum_i n_i w_i / sum_i n_i
    evaluation:      head(z + b_i)

m_i starts at 0 in every round and, as in the authors' code, is not corrected for that.

Down: the shared parameters and M. Up: the shared parameters (and m_i, of which only the first counts). Kept by a
client: its bias b_i in representation space (D numbers). As costly as FedAvg, and one round of all clients more, whose
bytes are in no metric of a round.
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
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    nn,
    torch,
)
from raysim.search_space import Range, Tuned


class Bias(nn.Module):
    """``z + bias``"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.bias


class FedDBE(FederatedAlgorithm):
    """A personal bias of the representation, and a pull of its mean to that of all clients."""

    paper = "https://arxiv.org/abs/2311.14975"
    about = About(
        "partial",
        sent="S + D",
        kept="a bias (D) of its representation",
        evaluated="with that bias",
        cost="1, and a round of all clients, whose bytes are not in `communication/…`",
    )
    uploads = {"shared": Upload(), "mean": Upload()}
    uses_features = True
    needs_body = True
    prepares = True
    modules = ("personal_bias",)

    kappa: Annotated[float, Tuned(Range(5.0, 500.0, log=True), "a factor of 10 around the authors' 50")] = Field(
        50.0, gt=0
    )
    """Weight of the pull; 50 in the authors' example."""
    momentum: Annotated[float, Tuned(Range(0.1, 1.0), "up to the authors' 1")] = Field(1.0, gt=0, le=1)
    """How much of the running mean is the newest batch's; 1 in the authors' example."""

    def add_modules(self, model: nn.Module) -> None:
        assert callable(model.get_classifier)
        model.personal_bias = Bias(model.get_classifier().in_features)

    def personal_patterns(self) -> list[str]:
        return [*self.personal, "personal_bias"]

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"mean": torch.zeros(ctx.layout.head_shape[1])}

    def server_prepare(self, server_state: Tensors, mean: Tensors) -> Tensors:
        return {"mean": mean["mean"].float()}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, **server_state}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        return {**super().client_init(state, ctx), "mean": torch.zeros_like(ctx.broadcast["mean"])}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        mean = (1 - self.momentum) * carry["mean"] + self.momentum * batch.mean(z)
        if ctx.phase == "prepare":
            return F.cross_entropy(ctx.head(theta, z), batch.labels, reduction="none"), mean
        logits = ctx.head(theta, ctx.module(theta, "personal_bias", z))
        pull = 0.5 * ((mean - ctx.broadcast["mean"]) ** 2).mean()
        return F.cross_entropy(logits, batch.labels, reduction="none") + self.kappa * pull, mean

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        gradient, loss, mean = ctx.gradient_of(self.losses, carry["theta"], batch, {"mean": carry["mean"]})
        theta, optimizer = ctx.optimizer.step(carry["theta"], gradient, carry["optimizer"])
        return {"theta": theta, "optimizer": optimizer, "mean": mean}, {"loss": loss}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        return {**uploads, "mean": carry["mean"]}, state

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        return ctx.head(theta, ctx.module(theta, "personal_bias", ctx.features(theta, images)))
