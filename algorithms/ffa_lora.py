"""FFA-LoRA: Improving LoRA in Privacy-preserving Federated Learning.

Y. Sun, Z. Li, Y. Li, B. Ding. ICLR 2024. https://arxiv.org/abs/2403.12313

    client i:  (B_i, h_i) = (B, h) after local epochs of SGD on its own loss; A stays as it was drawn, the same for all
    server:    B, h = the means of B_i, h_i, weighted by samples

With A fixed, the mean of the updates B_i A is the update of the mean. It wants a larger learning rate than FedIT.

Down and up: B and head. Kept by a client: nothing.
"""

from __future__ import annotations

from typing import Literal

from raysim.algorithms.base import About
from raysim.algorithms.lora import FederatedLoRA


class FFALoRA(FederatedLoRA):
    """LoRA whose first factor stays as it was drawn, so that averaging is exact."""

    paper = "https://arxiv.org/abs/2403.12313"
    about = About(
        "lora",
        sent="second factor of LoRA, head",
        kept="nothing",
        evaluated="as it is",
        cost="1, without the gradients of the backbone",
    )

    freeze_backbone: Literal[True] = True
    """The backbone and the first factor never train."""

    def trainable_patterns(self) -> list[str]:
        return ["lora.up", "head", *self.modules]
