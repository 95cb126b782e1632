"""kNN-Per: Personalized Federated Learning through Local Memorization.

O. Marfoq, G. Neglia, R. Vidal, L. Kameni. ICML 2022. https://arxiv.org/abs/2111.09360

    client i:    w_i = w after local epochs of SGD on its own loss
    server:      w   = sum_i n_i w_i / sum_i n_i
    evaluation:  lamda * votes + (1 - lamda) softmax(logits)

The votes are those of the k training samples of the client whose representations are nearest, with weights exp(-d^2 /
(kernel_scale D)), normalised, for representations of D numbers at distance d; as in the authors' code. All of a
client's samples are remembered, while it is evaluated. lamda is the same for all clients (the paper tunes it per client
on validation samples). A client with fewer than k samples votes with those that it has.

Down and up: the shared parameters. Kept by a client: nothing. A round costs as much as FedAvg's, an evaluation also a
forward pass over the client's training samples.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, Batch, ClientContext, F, FederatedAlgorithm, Tensor, Tensors, torch
from raysim.search_space import Range, Tuned


class KNNPer(FederatedAlgorithm):
    """FedAvg whose predictions are mixed with those of the nearest training samples of the client."""

    paper = "https://arxiv.org/abs/2111.09360"
    about = About("neighbours", sent="S", kept="nothing", evaluated="half by its nearest training samples", cost="1")
    uses_features = True

    k: Annotated[int, Tuned([1, 3, 5, 7, 10], "the authors' values")] = Field(10, ge=1)
    """How many neighbours vote; the authors try 1 to 10."""
    lamda: Annotated[float, Tuned(Range(0.01, 1.0), "the authors' grid is 0 to 1")] = Field(0.5, gt=0, le=1)
    """The paper's lambda, the share of the votes in the prediction."""
    kernel_scale: Annotated[float, Tuned(Range(0.1, 10.0, log=True), "a factor of 10 around the authors' 1")] = Field(
        1.0, gt=0
    )
    """Scale of squared distances, per number of a representation."""

    def remember(self, theta: Tensor, batch: Batch, ctx: ClientContext) -> Tensors:
        return {"features": ctx.features(theta, batch.images), "labels": batch.labels}

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        z, known = ctx.features(theta, images), state["features"]
        logits = ctx.head(theta, z)
        squares = (z**2).sum(dim=1)[:, None] + (known**2).sum(dim=1) - 2 * z @ known.T
        squares = torch.where(state["remembered"] > 0, squares, torch.inf)
        nearest, at = squares.topk(min(self.k, len(known)), dim=1, largest=False)
        weights = (-nearest / (self.kernel_scale * z.shape[1])).softmax(dim=1)
        votes = (weights[:, :, None] * F.one_hot(state["labels"], logits.shape[1])[at]).sum(dim=1)
        return (self.lamda * votes + (1 - self.lamda) * logits.softmax(dim=1)).log()
