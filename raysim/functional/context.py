"""What an algorithm's functions are given beside their tensors: ``ClientContext`` for a client, ``ServerContext``.

Shapes in this package: K clients computed together, B samples of a batch, C channels, H and W pixels, P parameters.
An algorithm sees one client, without K; the engine adds that axis with ``torch.func.vmap`` (``training/engine.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from raysim.functional.loss_and_gradient import Batch, FunctionalModel, Gradient
from raysim.functional.optimizers import Optimizer, Tensors
from raysim.functional.parameters import ParameterLayout


@dataclass(frozen=True)
class ServerContext:
    """The round as the server sees it."""

    layout: ParameterLayout
    round: int
    cohort_size: int
    num_clients: int


@dataclass(frozen=True)
class ClientContext:
    """The round as a client sees it. Everything here is the same for all clients of a round.

    Attributes:
        model: the model as a function of ``theta``.
        layout: where each tensor lies in ``theta``.
        broadcast: what the server sent down, by name; ``broadcast["shared"]`` is the round's shared vector. Read only.
        optimizer: the local optimiser at this round's learning rate.
        full_lr: ``train.optimizer.lr``, whatever ``train.schedule`` makes of it in this round.
        batch_size: ``train.batch_size``; a step has up to ``batches_per_step`` times as many samples.
        round: counted from 0.
        epoch: the local epoch, from 0. A Python number, as is ``phase``: code may branch on it.
        phase: this epoch's entry of ``FederatedAlgorithm.epochs``.
    """

    model: FunctionalModel
    layout: ParameterLayout
    broadcast: Tensors
    optimizer: Optimizer
    full_lr: float
    batch_size: int
    round: int
    epoch: int = 0
    phase: str = "train"

    def sgd(self, lr: float | None = None, momentum: float = 0.0) -> Optimizer:
        """SGD without decay or clipping, for steps that are not local training: adaptation, an inner step.

        ``lr`` None: ``full_lr``. Running statistics of BatchNorm change as in training.
        """
        return Optimizer("sgd", self.full_lr if lr is None else lr, momentum, statistics=self.optimizer.statistics)

    def mask(self, *patterns: str) -> Tensor:
        """A boolean vector (P,), true where a parameter matches one of the patterns: ``ctx.mask("head")``."""
        return _mask(self.layout, patterns, self.broadcast["shared"].device)

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The model at parameters (P,) on images (B, C, H, W): logits (B, classes)."""
        return self.model.logits(theta, images)

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over the unpadded samples of a batch, a scalar."""
        return self.model.loss(theta, *batch)

    def gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The gradient (P,) of the loss at ``theta``, and the loss, a scalar.

        Entries of BatchNorm's running statistics have the change that the batch made, old minus new.
        """
        if self.layout.statistics:
            return self.model.gradient_and_statistics(theta, batch)
        gradient, loss = Gradient.apply(theta, *batch, self.model)
        return gradient, loss

    def dot(self, first: Tensor, second: Tensor) -> Tensor:
        """The inner product, a scalar, of two vectors (P,) over the parameters that a gradient reaches.

        Running statistics of BatchNorm are left out: no loss in training depends on them.
        """
        if self.layout.statistics:
            first = first * ~self.mask(*self.layout.statistics)
        return (first * second).sum()

    def halves(self, batch: Batch) -> tuple[Batch, Batch]:
        """Two batches out of one of up to ``2 * batch_size`` samples.

        The first has ``batch_size`` samples and the second the rest; of no more than ``batch_size`` samples each gets half.
        With BatchNorm neither is padded, and neither has only one sample, which would have no statistics.
        """
        return _unpadded_halves(batch, self.batch_size) if self.layout.statistics else halves(batch, self.batch_size)


def halves(batch: Batch, batch_size: int) -> tuple[Batch, Batch]:
    """``ClientContext.halves`` of a batch that may be padded."""
    width, count = len(batch.mask), batch.mask.sum().long()
    cut = torch.where(count > batch_size, batch_size, (count + 1) // 2)
    widths = min(batch_size, width), max(width - batch_size, (min(batch_size, width) + 1) // 2)
    position = torch.arange(width, device=batch.mask.device)
    first, second = position[: widths[0]], (cut + position[: widths[1]]).clamp(max=width - 1)
    return (
        Batch(batch.images[first], batch.labels[first], batch.mask[first] * (first < cut)),
        Batch(batch.images[second], batch.labels[second], (cut + position[: widths[1]] < count).float()),
    )


def _unpadded_halves(batch: Batch, batch_size: int) -> tuple[Batch, Batch]:
    """The two halves of a batch without padding, cut without a mask: BatchNorm would also see masked samples."""
    count = len(batch.mask)
    cut = batch_size if count > batch_size else (count + 1) // 2
    cut = cut - 1 if count - cut == 1 and cut > 2 else cut
    return Batch(*(part[:cut] for part in batch)), Batch(*(part[cut:] for part in batch))


@lru_cache(maxsize=16)
def _mask(layout: ParameterLayout, patterns: tuple[str, ...], device: torch.device) -> Tensor:
    return layout.mask(patterns).to(device)
