"""Fed-RoD: On Bridging Generic and Personalized Federated Learning for Image Classification.

H.-Y. Chen, W.-L. Chao. ICLR 2022. https://arxiv.org/abs/2107.00778

    client i, on representation z and generic logits o of each batch:
        w_i by SGD on  CE(o + log(samples of each class), y)          balanced softmax; a class that it lacks is left out
        h_i by SGD on  CE(o + h_i z, y),  with o and z constant
    server:      w = sum_i n_i w_i / sum_i n_i
    evaluation:  logits o + h_i z

Down and up: the whole model w, whose head is generic. Kept by a client: its personal head h_i, linear, which starts as
a copy of the generic one. 1.1 times the cost of FedAvg. The paper also has a head from a hypernetwork, which is not
built. (FL-bench's version is another method: its gradient of the personal head reaches the body.)
"""

from __future__ import annotations

import copy
from typing import Any

from raysim.algorithms.base import About, Batch, Carry, ClientContext, F, FederatedAlgorithm, Tensor, Tensors, nn


class FedRoD(FederatedAlgorithm):
    """A generic head trained on balanced classes, and a personal one on top that corrects it."""

    paper = "https://arxiv.org/abs/2107.00778"
    about = About("partial", sent="S", kept="a second head", evaluated="sum of both heads", cost="1, measured 1.1")
    uses_features = True
    modules = ("personal_head",)

    def add_modules(self, model: nn.Module) -> None:
        assert callable(model.get_classifier)
        model.personal_head = copy.deepcopy(model.get_classifier())

    def personal_patterns(self) -> list[str]:
        return [*self.personal, "personal_head"]

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        logits = ctx.head(theta, z)
        balanced = F.cross_entropy(logits + ctx.client.class_counts.log(), batch.labels, reduction="none")
        both = logits.detach() + ctx.module(theta, "personal_head", z.detach())
        return balanced + F.cross_entropy(both, batch.labels, reduction="none"), ()

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        z = ctx.features(theta, images)
        return ctx.head(theta, z) + ctx.module(theta, "personal_head", z)
