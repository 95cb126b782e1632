"""GPFL: Simultaneously Learning Global and Personalized Feature Information for Personalized Federated Learning.

J. Zhang, Y. Hua, H. Wang, T. Song, Z. Xue, R. Ma, J. Cao, H. Guan. ICCV 2023. https://arxiv.org/abs/2308.10279

    client i:    on representation z, with z_c = CoV(z, c) = relu((gamma(c) + 1) z + beta(c)):
                 CE(head_i(z_p), y) + CE(cos(z_g, G), y) + lamda |z_g - G_y|,  mu / 2 (|G|^2 + |CoV|^2)
    server:      body, G and CoV are means weighted by samples
    evaluation:  head_i(z_p)

G (classes, D) is an embedding of the classes; the G_y in the norm, which is that of the whole batch, is what the server
sent. c_g is the mean of the rows of G, c_p their mean weighted by the client's samples of each class. As in the
authors' code both are of the G that the client has when a new one arrives: its own trained one after a round in which
it trained, else the one sent before; 0 in round 0.

Down: body, G, CoV, and the G before. Up: body, G, CoV. Kept by a client: its head, the G that it trained and the one
that it trained with, and in which round. 1.2 times the cost of FedAvg. mu is part of the gradient, under AdamW, too.
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
    ServerContext,
    Tensor,
    Tensors,
    nn,
    torch,
)
from raysim.search_space import Range, Tuned


class CoV(nn.Module):
    """Conditional valve: ``relu((gamma(c) + 1) z + beta(c))``, z (B, D) and c (D,) to (B, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim))
        self.beta = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim))

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        return F.relu((self.gamma(condition) + 1) * z + self.beta(condition))


class GPFL(FederatedAlgorithm):
    """Class embeddings guide shared features, and a conditional valve gives each client its own view of them."""

    paper = "https://arxiv.org/abs/2308.10279"
    about = About(
        "partial",
        sent="body, class embedding, valve; down also the embedding before",
        kept="the head, two class embeddings",
        evaluated="on conditioned features",
        cost="1, measured 1.2",
    )
    uses_features = True
    needs_body = True
    modules = ("embedding", "cov")

    personal: list[str] = ["head"]
    """Patterns of the personal parameters."""
    lamda: Annotated[float, Tuned(Range(1e-5, 0.1, log=True), "a factor of 10 around the authors' 0.0001 and 0.01")] = (
        Field(0.01, gt=0)
    )
    """The paper's lambda, the weight of the distance to a class's embedding; 0.01 in the authors' experiments with a CNN."""
    mu: Annotated[float, Tuned([0.0, 0.01, 0.1, 1.0], "the authors' 0, 0.1 and 1, and 0.01")] = Field(0.1, ge=0)
    """Weight decay of G and CoV; 0.1 in the authors' experiments with a CNN."""

    def add_modules(self, model: nn.Module) -> None:
        assert callable(model.get_classifier)
        head = model.get_classifier()
        model.embedding = nn.Embedding(head.out_features, head.in_features)
        model.cov = CoV(head.in_features)

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"before": torch.zeros_like(ctx.layout.piece(shared, "embedding.weight"))}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, **server_state}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        return mean["shared"], {"before": ctx.layout.piece(shared, "embedding.weight").clone()}

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        embedding = torch.zeros_like(layout.piece(theta, "embedding.weight").flatten())
        return {
            **super().client_state(theta, layout),
            "embedding": embedding,
            "held": embedding,
            "next": theta.new_zeros(1),
        }

    def _held(self, state: Tensors, ctx: ClientContext) -> Tensor:
        """The G (classes, D) that the client has when that of the round arrives; ``next`` is the round after its last."""
        before = ctx.broadcast["before"]
        return torch.where(state["next"] == ctx.round, state["embedding"].view_as(before), before)

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        return {**super().client_init(state, ctx), "held": self._held(state, ctx)}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        held, z = carry["held"], ctx.features(theta, batch.images)
        z_p = ctx.module(theta, "cov", z, personal_condition(held, ctx))
        z_g = ctx.module(theta, "cov", z, held.mean(dim=0))
        embedding = F.normalize(ctx.layout.piece(theta, "embedding.weight"), dim=1)
        sent = ctx.layout.piece(ctx.broadcast["shared"], "embedding.weight")
        distance = torch.linalg.vector_norm((z_g - sent[batch.labels]) * batch.mask[:, None])
        own = F.cross_entropy(ctx.head(theta, z_p), batch.labels, reduction="none")
        guided = F.cross_entropy(F.normalize(z_g, dim=1) @ embedding.T, batch.labels, reduction="none")
        return own + guided + self.lamda * distance, ()

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        gradient, loss = super().gradient(carry, batch, ctx)
        return gradient + self.mu * ctx.mask("embedding", "cov") * carry["theta"], loss

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        embedding = ctx.layout.piece(carry["theta"], "embedding.weight").flatten()
        after = torch.full_like(embedding[:1], ctx.round + 1)
        return uploads, {**state, "embedding": embedding, "held": carry["held"].flatten(), "next": after}

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        held = state["held"].view_as(ctx.broadcast["before"]) if ctx.as_trained else self._held(state, ctx)
        z_p = ctx.module(theta, "cov", ctx.features(theta, images), personal_condition(held, ctx))
        return ctx.head(theta, z_p)


def personal_condition(embedding: Tensor, ctx: ClientContext) -> Tensor:
    """The mean (D,) of the rows of G, weighted by the client's samples of each class."""
    return ctx.client.class_counts @ embedding / ctx.client.num_samples
