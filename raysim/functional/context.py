"""What an algorithm's functions are given beside their tensors: ``ClientContext`` for a client, ``ServerContext``.

Shapes in this package: K clients computed together, B samples of a batch, C channels, H and W pixels, P parameters.
An algorithm sees one client, without K; the engine adds that axis with ``torch.func.vmap`` (``training/engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raysim.functional.batch import Batch
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.optimizers import Optimizer, Tensors
from raysim.functional.parameters import ParameterLayout


@dataclass(frozen=True)
class ServerContext:
    """The round as the server sees it.

    Attributes:
        round: counted from 0; of the first, before it begins, too.
        num_rounds: of the run; use it only where the method says ``depends_on_rounds``.
        num_reported: how many clients' uploads are in the means.
        initial: (P,) the model's initial parameters.
        num_samples: (N,) float64, the training samples of every client of the run.
        generator: for what the server draws, seeded for this use of it (a round's step; a client's row).
        rows: ``rows(ids, *names)``: what the server keeps of other clients than those at hand, with ids (K,), each (K, n),
            read from disk; all of a row, or the entries of these names.
        has_row: (K,) bool: of which of them it has kept anything yet. A row that was not is drawn anew each time.
    """

    layout: ParameterLayout
    round: int
    num_rounds: int
    num_reported: int
    initial: Tensor
    num_samples: Tensor
    generator: torch.Generator
    rows: Callable[..., Tensors]
    has_row: Callable[[Tensor], Tensor]

    @property
    def num_clients(self) -> int:
        return len(self.num_samples)


@dataclass(frozen=True)
class ClientRows:
    """What the server has of K clients, in the order of their ids.

    Attributes:
        ids: (K,) int64.
        rows: what it keeps of each (``server_row``), (K, n) by name.
        uploads: what each has sent (``Upload("each")``), (K, n) by name; none outside the server's step.
    """

    ids: Tensor
    rows: Tensors
    uploads: Tensors


MethodLosses = Callable[[Tensor, Batch, Any, "ClientContext"], tuple[Tensor, Any]]


class ClientData(NamedTuple):
    """What a client knows of its data and of its work in a round; float32 tensors.

    Attributes:
        num_samples: (), its training samples.
        class_counts: (classes,), how many of them each class has.
        num_steps: (), the local steps that it does in this round, over all epochs that train; 0 outside training.
    """

    num_samples: Tensor
    class_counts: Tensor
    num_steps: Tensor


@dataclass(frozen=True)
class ClientContext:
    """The round as a client sees it. Everything but ``client`` is the same for all clients of a round.

    Attributes:
        model: the model as a function of ``theta``.
        layout: where each tensor lies in ``theta``.
        broadcast: what the server sent down, by name; ``broadcast["shared"]`` is the round's shared vector. Read only.
        optimizer: the local optimiser at this round's learning rate.
        full_lr: ``train.optimizer.lr``, whatever ``train.schedule`` makes of it in this round.
        batch_size: ``train.batch_size``; a step has up to ``batches_per_step`` times as many samples.
        round: counted from 0. What is evaluated after the last round is evaluated as in the round that would come next.
        num_rounds: of the run, for methods that say ``depends_on_rounds``.
        cohort_share: the share of all clients that train in a round.
        epoch: the local epoch, from 0. A Python number, as is ``phase``: code may branch on it.
        phase: this epoch's entry of ``FederatedAlgorithm.epochs``; ``prepare`` before round 0, ``adapt`` in adaptation and
            ``evaluate`` in the rest of an evaluation.
        as_trained: in the evaluation of clients that have just trained, for ``personalized/...``: before aggregation.
        client: what this client knows of its data.
    """

    model: FunctionalModel
    layout: ParameterLayout
    broadcast: Tensors
    optimizer: Optimizer
    full_lr: float
    batch_size: int
    round: int
    _num_rounds: int | None = None
    cohort_share: float = 1.0
    epoch: int = 0
    phase: str = "train"
    as_trained: bool = False
    _client: ClientData | None = None

    @property
    def num_rounds(self) -> int:
        if self._num_rounds is None:
            raise RuntimeError(
                "ctx.num_rounds is for methods whose class has `depends_on_rounds = True`; more rounds later are refused then"
            )
        return self._num_rounds

    @property
    def client(self) -> ClientData:
        assert self._client is not None, "ctx.client is for functions of a client, of a run whose data are loaded"
        return self._client

    def of(self, client: ClientData) -> ClientContext:
        """The same round as another client sees it."""
        return replace(self, _client=client)

    def sgd(self, lr: float | None = None, momentum: float = 0.0) -> Optimizer:
        """SGD without decay or clipping, for steps that are not local training: adaptation, an inner step.

        ``lr`` None: ``full_lr``. Running statistics of BatchNorm change as in training.
        """
        return Optimizer("sgd", self.full_lr if lr is None else lr, momentum, statistics=self.optimizer.statistics)

    # Parts of theta.

    def mask(self, *patterns: str) -> Tensor:
        """A boolean vector (P,), true where a parameter matches one of the patterns: ``ctx.mask("head")``."""
        return _mask(self.layout, patterns, self.broadcast["shared"].device)

    @property
    def is_personal(self) -> Tensor:
        """A boolean vector (P,), true where a parameter is personal."""
        return _is_personal(self.layout, self.broadcast["shared"].device)

    def on_shared(self, vector: Tensor) -> Tensor:
        """A vector (S,) about the shared parameters as one (P,) to be added to a gradient: 0 for the personal ones.

        And 0 for running statistics of BatchNorm, which no gradient moves.
        """
        nothing = vector.new_zeros(self.layout.num_personal)
        return self.trained(self.layout.join(vector, nothing))

    def drift(self, theta: Tensor) -> Tensor:
        """How far parameters (P,) are from what the server sent: (P,), 0 where ``on_shared`` is."""
        return self.on_shared(self.layout.split(theta)[0] - self.broadcast["shared"])

    def trained(self, vector: Tensor) -> Tensor:
        """A vector (P,), or one (S,) about the shared parameters, with 0 for running statistics of BatchNorm."""
        if not self.layout.statistics:
            return vector
        return vector * ~self.mask(*self.layout.statistics)[: vector.shape[-1]]

    # The model at theta.

    def logits(self, theta: Tensor, images: Tensor) -> Tensor:
        """The model at parameters (P,) on images (B, C, H, W): logits (B, classes)."""
        return self.model.logits(theta, images)

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """The model's representation (B, D) of images, which its classifier ``head`` takes."""
        return self.model.features(theta, images)

    def head(self, theta: Tensor, features: Tensor) -> Tensor:
        """The model's classifier on representations (B, D): logits (B, classes). Of ``features``, they are ``logits``."""
        return self.model.head(theta, features)

    def module(self, theta: Tensor, name: str, *inputs: Tensor) -> Tensor:
        """The output of a part of the model, or of what ``add_modules`` added to it, by name."""
        return self.model.module(theta, name, *inputs)

    # Losses and gradients.

    def loss(self, theta: Tensor, batch: Batch) -> Tensor:
        """Mean cross entropy over the unpadded samples of a batch, a scalar."""
        return self.model.loss(theta, batch)

    def gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The gradient (P,) of the cross entropy at ``theta``, and the loss, a scalar.

        Entries of BatchNorm's running statistics have the change that the batch made, old minus new.
        """
        return self.model.gradient(theta, batch)

    def gradient_of(self, losses: MethodLosses, theta: Tensor, batch: Batch, carry: Any) -> tuple[Tensor, Tensor, Any]:
        """The gradient (P,) of a method's own loss at ``theta``, the loss, and what else ``losses`` returned.

        ``losses(theta, batch, carry, ctx)`` gives the loss (B,) of each sample, of which the mean over unpadded ones is
        taken, and any tree of tensors that the step needs as well. It is written for one client, and may read a client's
        tensors only from its arguments, which is why the carry is one of them: no closure over another tensor.
        """

        def of_tensors(theta: Tensor, batch: Batch, tensors: Any) -> tuple[Tensor, Any]:
            carry, client = tensors
            return losses(theta, batch, carry, replace(self, _client=client or None))

        return self.model.gradient_of(of_tensors, theta, batch, (carry, self._client or ()))

    def dot(self, first: Tensor, second: Tensor) -> Tensor:
        """The inner product, a scalar, of two vectors (P,) over the parameters that a gradient reaches.

        Running statistics of BatchNorm are left out: no loss in training depends on them.
        """
        return (self.trained(first) * second).sum()

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
def _is_personal(layout: ParameterLayout, device: torch.device) -> Tensor:
    return torch.arange(layout.num_parameters, device=device) >= layout.num_shared


@lru_cache(maxsize=16)
def _mask(layout: ParameterLayout, patterns: tuple[str, ...], device: torch.device) -> Tensor:
    return layout.mask(patterns).to(device)
