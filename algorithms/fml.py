"""FML: Federated Mutual Learning.

T. Shen, J. Zhang, X. Jia, F. Zhang, G. Huang, P. Zhou, K. Kuang, F. Wu, C. Wu. 2020. https://arxiv.org/abs/2006.16765

    client i, for each batch, both at once:  w_i by SGD on  alpha CE(w_i) + (1 - alpha) KL(w | w_i)
                                             w   by SGD on  beta CE(w) + (1 - beta) KL(w_i | w)
    server:    w = mean of w over the clients of the round, with equal weights
    evaluation:  w_i

KL(p | q) is that of the predictions of q from those of p, which are constant. PFLlib's are averaged over the classes, too
(100 classes: a hundredth), are not constant, and its defaults alpha 1, beta 0 leave the shared model without labels; it
clips gradients to norm 10, which here is ``train.optimizer.clip_norm``.

Down and up: the whole shared model w, the paper's meme model. Kept by a client: its own model w_i. 2.7 times the cost of
FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from raysim.algorithms.base import About, Batch, Carry, ClientContext, F, Tensor, Tensors, Upload
from raysim.algorithms.own_model import OwnModel
from raysim.search_space import Tuned


class FML(OwnModel):
    """A client's own model and the shared one learn from each other's predictions."""

    paper = "https://arxiv.org/abs/2006.16765"
    about = About("distillation", sent="S", kept="a model of its own", evaluated="its own model", cost="2.7")
    uploads = {"shared": Upload("uniform")}
    trains_own_model = True

    alpha: Annotated[float, Tuned([0.1, 0.3, 0.5, 0.7, 0.9], "all of the interval on which it is defined")] = Field(
        0.5, ge=0, le=1
    )
    """Weight of the labels for the own model; the rest is that of the shared model's predictions."""
    beta: Annotated[float, Tuned([0.1, 0.3, 0.5, 0.7, 0.9], "all of the interval on which it is defined")] = Field(
        0.5, ge=0, le=1
    )
    """The same for the shared model."""

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        shared, own = ctx.broadcast["shared"].clone(), state["own"]
        optimizers = {"optimizer": ctx.optimizer.init(shared), "own_optimizer": ctx.optimizer.init(own)}
        return {"theta": shared, "own": own, **optimizers}

    def own_losses(self, theta: Tensor, batch: Batch, other: Tensor, ctx: ClientContext) -> tuple[Tensor, Any]:
        """Of the own model, beside the logits (B, classes) of the shared one."""
        return _mutual(ctx.logits(theta, batch.images), other, batch, self.alpha), ()

    def shared_losses(self, theta: Tensor, batch: Batch, other: Tensor, ctx: ClientContext) -> tuple[Tensor, Any]:
        """Of the shared model, beside the logits (B, classes) of the own one."""
        return _mutual(ctx.logits(theta, batch.images), other, batch, self.beta), ()

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        shared, own = carry["theta"], carry["own"]
        of_shared, of_own = ctx.logits(shared, batch.images), ctx.logits(own, batch.images)
        own_gradient, own_loss, _ = ctx.gradient_of(self.own_losses, own, batch, of_shared)
        gradient, loss, _ = ctx.gradient_of(self.shared_losses, shared, batch, of_own)
        own, own_optimizer = ctx.optimizer.of_own_model().step(own, own_gradient, carry["own_optimizer"])
        shared, optimizer = ctx.optimizer.step(shared, gradient, carry["optimizer"])
        new = {"theta": shared, "own": own, "optimizer": optimizer, "own_optimizer": own_optimizer}
        return new, {"loss": loss, "personal_loss": own_loss}


def _mutual(logits: Tensor, other: Tensor, batch: Batch, weight: float) -> Tensor:
    """``weight`` times the cross entropy (B,), and for the rest the divergence from the other's predictions."""
    labels = F.cross_entropy(logits, batch.labels, reduction="none")
    divergence = F.kl_div(logits.log_softmax(dim=1), other.log_softmax(dim=1), reduction="none", log_target=True)
    return weight * labels + (1 - weight) * divergence.sum(dim=1)
