"""FedProto: Federated Prototype Learning across Heterogeneous Clients.

Y. Tan, G. Long, L. Liu, T. Zhou, Q. Lu, J. Jiang, C. Zhang. AAAI 2022. https://arxiv.org/abs/2105.00243

    client i:    w_i by local epochs of SGD on  CE(x, y) + lamda mean((z - C_y)^2)
                 c_ik = mean of z over the samples of class k in all of its steps
    server:      C_k = mean of c_ik over the clients of the round that have class k
    evaluation:  the class with the nearest C_k

z is the representation. There is no pull in the first round, nor to a class that nobody had in the round before: it has
no prototype and is not predicted; as long as there are none at all, the head predicts. Prototypes count equally, as in
the authors' code; ``prototype_weights: samples`` weighs them by the clients' samples of the class, as in the paper.

Down and up: a prototype (D numbers) per class. Kept by a client: its whole model. As costly to compute as FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    torch,
)
from raysim.search_space import Range, Tuned


class FedProto(FederatedAlgorithm):
    """Clients share one prototype per class in place of parameters."""

    paper = "https://arxiv.org/abs/2105.00243"
    about = About(
        "distillation",
        sent="a prototype (D) per class",
        kept="its whole model",
        evaluated="nearest prototype",
        cost="1",
    )
    shares_nothing = True
    whole_model_kept = "its clients share prototypes and no parameters"
    uploads = {"shared": Upload(), "prototypes": Upload("uniform"), "weights": Upload("uniform")}
    uses_features = True
    needs_body = True

    lamda: Annotated[float, Tuned(Range(0.01, 10.0, log=True), "a factor of 10 around the authors' 0.1 and 1")] = Field(
        1.0, gt=0
    )
    """The paper's lambda, the weight of the distance to the prototypes; the authors have 1, and 0.1 for CIFAR-10."""
    prototype_weights: Literal["clients", "samples"] = "clients"
    """``clients``: each client that has a class counts once. ``samples``: by its samples of the class."""
    inference: Literal["prototype", "head"] = "prototype"
    """Predict the class of the nearest prototype, as in the paper, or by the model's head."""

    def personal_patterns(self) -> list[str]:
        return ["*"]

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        classes, dim = ctx.layout.head_shape
        return {"prototypes": torch.zeros(classes, dim), "known": torch.zeros(classes)}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, **server_state}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        weights = mean["weights"]
        known = weights > 0
        prototypes = mean["prototypes"].view(len(weights), -1) / torch.where(known, weights, 1.0)[:, None]
        return shared, {"prototypes": prototypes.float(), "known": known.float()}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        prototypes, counts = ctx.broadcast["prototypes"], ctx.client.class_counts
        return {
            **super().client_init(state, ctx),
            "sums": torch.zeros_like(prototypes),
            "counts": torch.zeros_like(counts),
        }

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        loss = F.cross_entropy(ctx.head(theta, z), batch.labels, reduction="none")
        distance = ((z - ctx.broadcast["prototypes"][batch.labels]) ** 2).mean(dim=1)
        return loss + self.lamda * ctx.broadcast["known"][batch.labels] * distance, z

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        gradient, loss, z = ctx.gradient_of(self.losses, carry["theta"], batch, ())
        theta, optimizer = ctx.optimizer.step(carry["theta"], gradient, carry["optimizer"])
        has = F.one_hot(batch.labels, len(carry["counts"])) * batch.mask[:, None]
        sums, counts = carry["sums"] + has.T @ z, carry["counts"] + has.sum(dim=0)
        return {"theta": theta, "optimizer": optimizer, "sums": sums, "counts": counts}, {"loss": loss}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        counts = carry["counts"]
        weights = (counts > 0).float() * (1.0 if self.prototype_weights == "clients" else ctx.client.class_counts)
        prototypes = carry["sums"] / counts.clamp(min=1)[:, None]
        return {**uploads, "prototypes": (weights[:, None] * prototypes).flatten(), "weights": weights}, state

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        z = ctx.features(theta, images)
        logits, known = ctx.head(theta, z), ctx.broadcast["known"] > 0
        if self.inference == "head":
            return logits
        distances = ((z[:, None] - ctx.broadcast["prototypes"]) ** 2).mean(dim=2)
        return torch.where(known.any(), torch.where(known, -distances, -torch.inf), logits)
