"""FedAS: Bridging Inconsistency in Personalized Federated Learning.

X. Yang, W. Huang, M. Ye. CVPR 2024.
https://openaccess.thecvf.com/content/CVPR2024/html/Yang_FedAS_Bridging_Inconsistency_in_Personalized_Federated_Learning_CVPR_2024_paper.html

    client i, as it receives the body w:  c_k = mean representation of class k under its own last model,
        an epoch of SGD (align_lr) of w on  sum_k mean over class k of mean((z - c_k)^2)
    then:    local epochs of SGD of that body and its own head h_i
    server:  w = sum_i f_i w_i / sum_i f_i,  f_i = sum over batches of |g(w_i, h_i)|^2 after training, the trace of the Fisher
             matrix, as in the authors' code of the gradient of a batch's mean (so it favours clients with many batches)
    evaluation:  (w_i, h_i) after the client's last training

Down and up: the body, and one number up. Kept by a client: its whole last model. Every client aligns the body that the
server sent (in the authors' code the next client of a round gets what the one before has aligned), in batches of
``train.batch_size`` (there of 16). With E local epochs (E + 2.3) / E times the cost of FedAvg.
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
    Upload,
    torch,
)
from raysim.search_space import Range, Tuned

LEAST = 1e-8  # so that clients that have converged count equally, in place of by what the exact mean rounds off


class FedAS(FederatedAlgorithm):
    """The received body is aligned with the client's own prototypes; clients weigh by their Fisher information."""

    paper = (
        "https://openaccess.thecvf.com/content/CVPR2024/html/"
        "Yang_FedAS_Bridging_Inconsistency_in_Personalized_Federated_Learning_CVPR_2024_paper.html"
    )
    about = About(
        "partial",
        sent="body; 1 number more up",
        kept="its whole last model",
        evaluated="its last model",
        cost="(E + 2.3) / E",
    )
    uploads = {"shared": Upload("uniform", times="fisher", scale_bits=44), "fisher": Upload("uniform", scale_bits=44)}
    whole_phases = ("prototypes", "align", "fisher")
    needs_body = True
    uses_features = True

    personal: list[str] = ["head"]
    """Patterns of the personal parameters."""
    align_lr: Annotated[float, Tuned(Range(1e-3, 0.1, log=True), "a factor of 10 around the authors' 0.01")] = Field(
        0.01, gt=0
    )
    """Learning rate of the alignment, plain SGD; 0.01 in the authors' code."""

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        shared, personal = layout.split(theta)
        return {"personal": personal, "own": shared}

    def epochs(self, local_epochs: int) -> list[str]:
        return ["prototypes", "align", *["train"] * local_epochs, "fisher"]

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        classes, dim = ctx.layout.head_shape
        return {
            **super().client_init(state, ctx),
            "own": ctx.layout.join(state["own"], state["personal"]),
            "sums": state["own"].new_zeros(classes, dim),
            "fisher": state["own"].new_zeros(1),
        }

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        """Of the alignment, in its phase; the weights turn the mean over samples into a sum over classes of means."""
        if ctx.phase != "align":
            return super().losses(theta, batch, carry, ctx)
        z = ctx.features(theta, batch.images)
        prototypes = carry["sums"] / ctx.client.class_counts.clamp(min=1)[:, None]
        of_class = (F.one_hot(batch.labels, len(prototypes)) * batch.mask[:, None]).sum(dim=0)
        weights = batch.mask.sum() / of_class[batch.labels].clamp(min=1)
        return weights * ((z - prototypes[batch.labels]) ** 2).mean(dim=1), ()

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        theta = carry["theta"]
        if ctx.phase == "prototypes":
            has = F.one_hot(batch.labels, len(carry["sums"])) * batch.mask[:, None]
            return {**carry, "sums": carry["sums"] + has.T @ ctx.features(carry["own"], batch.images)}, {}
        if ctx.phase == "align":
            gradient, loss = self.gradient(carry, batch, ctx)
            aligned, _ = ctx.sgd(self.align_lr).step(theta, gradient, {})
            return {**carry, "theta": torch.where(ctx.is_personal, theta, aligned)}, {"alignment": loss}
        if ctx.phase == "fisher":
            gradient, _ = ctx.gradient(theta, batch)
            return {**carry, "fisher": carry["fisher"] + ctx.dot(gradient, gradient)}, {}
        return super().client_step(carry, batch, ctx)

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        return {**uploads, "fisher": carry["fisher"] + LEAST}, {**state, "own": uploads["shared"]}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return ctx.layout.join(state["own"], state["personal"])
