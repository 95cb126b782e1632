"""What an algorithm's functions are handed for one client: ``Batch`` and ``ClientContext``; ``Optimizer`` is beside it.

Shapes in this package: K clients computed together, B samples of a batch, C channels, H and W pixels, P parameters.
An algorithm sees one client, without K; the engine adds that axis with ``torch.func.vmap`` (see ``training.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from raysim.functional.loss_and_gradient import Batch, Gradient, Network
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
        layout: where each tensor lies in ``theta``.
        broadcast: what the server sent down, by name; ``broadcast["shared"]`` is the round's shared vector. Read only.
        optimizer: the local optimiser at this round's learning rate.
        batch_size: ``train.batch_size``; a step has up to ``batches_per_step`` times as many samples.
        round: counted from 0.
        epoch: the local epoch, from 0. A Python number, as is ``phase``: code may branch on it.
        phase: this epoch's entry of ``FederatedAlgorithm.epochs``.
    """

    network: Network
    layout: ParameterLayout
    broadcast: Tensors
    optimizer: Optimizer
    batch_size: int
    round: int
    epoch: int = 0
    phase: str = "train"

    def mask(self, *patterns: str) -> Tensor:
        """A boolean vector (P,), true where a parameter matches one of the patterns: ``ctx.mask("head")``."""
        return _mask(self.layout, patterns, self.broadcast["shared"].device)

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The model at parameters (P,) on images (B, C, H, W): logits (B, classes)."""
        return self.network.logits(theta, images)

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over the unpadded samples of a batch, a scalar."""
        return self.network.loss(theta, *batch)

    def gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The gradient (P,) of the loss at ``theta``, and the loss, a scalar.

        Entries of BatchNorm's running statistics have the change that the batch made, old minus new.
        """
        if self.layout.statistics:
            return self.network.gradient_and_statistics(theta, batch)
        gradient, loss = Gradient.apply(theta, *batch, self.network)
        return gradient, loss


@lru_cache(maxsize=16)
def _mask(layout: ParameterLayout, patterns: tuple[str, ...], device: torch.device) -> Tensor:
    return layout.mask(patterns).to(device)
