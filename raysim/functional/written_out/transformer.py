"""``WrittenOut``: logits, representation and the gradient of the cross entropy of a timm ViT for K clients at once.

Shapes: K clients, B samples of each, T tokens of a sample, D numbers of a token, P parameters; images (K, B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raysim.functional.parameters import ParameterLayout
from raysim.functional.written_out.layers import Back, Layer
from raysim.functional.written_out.weights import Weights

Output = Literal["logits", "features"]


@dataclass(frozen=True)
class Stage:
    """A part of the model, and the names of its parameters."""

    layer: Layer
    names: tuple[str, ...]


class WrittenOut:
    """A model that ``recognised.py`` has taken apart.

    Args:
        stages: from images to the representation (K, B, D).
        head: the classifier.
        frozen: the values of parameters that are not in ``theta``.
    """

    def __init__(self, stages: list[Stage], head: Stage, layout: ParameterLayout, frozen: Mapping[str, Tensor]) -> None:
        self._stages = {"features": stages, "logits": [*stages, head]}
        self._layout, self._frozen = layout, frozen

    def __call__(self, theta: Tensor, images: Tensor, output: Output) -> Tensor:
        """Logits (K, B, classes) or representations (K, B, D) of images, without a way back."""
        x, w = images, Weights(theta, self._layout, self._frozen, goes_back=False)
        for stage in self._stages[output]:
            x, _ = stage.layer(w, x)
        return x

    def with_back(
        self, theta: Tensor, images: Tensor, output: Output, once: bool = False
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The same, and from the gradient of that the gradient (K, P) of ``theta``.

        ``once``: that way is gone once only, so what each part keeps for it is let go on the way.
        """
        assert theta.shape[1] == self._layout.num_parameters
        x, w = images, Weights(theta, self._layout, self._frozen, goes_back=True)
        backs: list[Back] = []
        for stage in self._stages[output]:
            x, back = stage.layer(w, x)
            trains = any(not w.is_frozen(name) for name in stage.names)
            if backs or trains:  # nothing before the first part that trains needs a gradient
                backs.append(back)

        def way_back(of_output: Tensor) -> Tensor:
            w.gradients, w.written = of_output.new_empty(theta.shape), set()
            left = backs if once else list(backs)
            while left:
                of_output = left.pop()(of_output)
            for name, (start, size, _) in self._layout.places.items():
                if name not in w.written:  # the output does not depend on it
                    w.gradients[:, start : start + size] = 0
            return w.gradients

        return x, way_back

    def gradient(self, theta: Tensor, images: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (K, P) of the mean cross entropy over the samples whose mask (K, B) is 1, and that mean (K,)."""
        logits, back = self.with_back(theta, images, "logits", once=True)
        log_probabilities = logits.log_softmax(dim=-1)
        weights = (mask / mask.sum(dim=1, keepdim=True).clamp(min=1))[..., None]
        chosen = labels[..., None]
        losses = log_probabilities.gather(-1, chosen).mul(-1)
        loss = torch.where(weights > 0, losses, 0.0).mul_(weights).sum(dim=(1, 2))
        of_logits = log_probabilities.exp_()
        # Not by a scatter, which on a GPU is many kernels and a wait where it has to be deterministic.
        of_logits -= (chosen == torch.arange(logits.shape[-1], device=logits.device)).to(of_logits.dtype)
        return back(torch.where(weights > 0, of_logits * weights, 0.0)), loss
