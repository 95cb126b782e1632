"""``ClientEngine``: trains a client batch, K clients at once, and sums up what they upload.

Algorithms are written for one client. The engine calls their functions through ``torch.func.vmap`` over the K clients of a
batch, or directly when there is one. ``local_training.py`` has the local steps, ``evaluation.py`` what follows them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysim.algorithms import FederatedAlgorithm, Upload
from raysim.config.schema import Config
from raysim.config.sections.training import OptimizerConfig
from raysim.data.partition import Partition
from raysim.errors import ConfigError
from raysim.functional.context import ClientContext
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.optimizers import Optimizer, Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.functional.state_layout import StateLayout
from raysim.own_code import checked_options, imported, is_own
from raysim.training.aggregation import (
    TOTAL_BITS,
    ClientUploads,
    FixedPoint,
    acceptable,
    fixed_point,
    grouped_sum,
    weighted_sum,
)
from raysim.training.evaluation import Evaluation, Evaluator, Predictor, evaluates_one_model
from raysim.training.learning_rate import rate_factor
from raysim.training.local_training import LocalTrainer, LocalTraining
from raysim.training.sample_batches import ClientSamples, to_device
from raysim.training.sensitivity import (
    DIRECTIONS,
    SCALE_BITS,
    largest_entries,
    squared_updates,
    sum_and_directions,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """The result of training K clients in a round."""

    clients: Ints
    sums: dict[str, FixedPoint]
    uploads: ClientUploads | None
    """Of the clients that report, what the server gets of each; None if there is no such upload."""
    states: NDArray[np.float32]
    """(K, size of the client state)"""
    accepted: NDArray[np.bool_]
    metrics: dict[str, Floats]
    """Each (K,): a client's mean over the samples of those of its local steps that report the metric."""
    metric_samples: dict[str, Floats]
    """Each (K,): how many samples that mean is over; 0 if the client had no such step."""
    squared_updates: dict[str, Floats]
    """Each (K,): squared norm of a client's update per type of layer; empty without ``sensitivity``."""
    evaluation: Evaluation | None
    traffic: Floats | None = None
    """(K, 2): how many numbers each was sent and sends, of a method that says so."""


def make_optimizer(
    settings: OptimizerConfig, lr: float, statistics: Tensor | None = None, personal: Tensor | None = None
) -> Optimizer:
    """The local optimiser that ``train.optimizer`` names, at this learning rate.

    Args:
        statistics, personal: boolean vectors (P,), or None if there are none.

    Raises:
        ConfigError: there is no such class of the user's, it is no ``Optimizer``, or it has no such fields.
    """
    cls = Optimizer
    if is_own(settings.name):
        cls = imported(settings.name, "train.optimizer.name")
        if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
            raise ConfigError(f"train.optimizer.name: {settings.name!r} is no subclass of raysim.Optimizer")
        given = [field.name for field in fields(Optimizer)]
        checked_options(cls, settings.options or {}, settings.name, "train.optimizer.options", given)
    common = (settings.name, lr, settings.momentum, settings.weight_decay, settings.clip_norm, statistics)
    optimizer = cls(*common, **(settings.options or {}))
    if settings.nesterov:
        optimizer = replace(optimizer, nesterov=True)
    if settings.personal_lr in (None, settings.lr):
        return optimizer
    return replace(optimizer, personal=personal, personal_factor=settings.personal_lr / settings.lr)


def layout_of(model: nn.Module, algorithm: FederatedAlgorithm) -> ParameterLayout:
    """What an algorithm shares, keeps personal and freezes of a model.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    return ParameterLayout.of(model, algorithm.personal_patterns(), algorithm.trainable_patterns())


class ClientEngine:
    """Everything that a worker needs to train any client of a run.

    Args:
        model: gives the architecture and the values of frozen parameters; its other values are never used.
        initial: the run's initial parameters (P,), in the order of ``ParameterLayout``.
        images, labels: the whole data set, read only (it may lie in shared memory).
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        initial: Tensor,
        images: NDArray[np.uint8],
        labels: Ints,
        partition: Partition,
        device: str,
    ) -> None:
        self.config, self.partition, self.device = config, partition, torch.device(device)
        self.algorithm: FederatedAlgorithm = config.algorithm
        self._uploads = self.algorithm.uploads
        self.layout = layout_of(model, self.algorithm)
        state = self.algorithm.client_state(initial, self.layout)
        self.state_layout = StateLayout.of(state)
        self.initial = initial
        self.initial_state = self.state_layout.pack(state).numpy()
        model = model.to(self.device).requires_grad_(False)
        resources, statistics = config.resources, self.layout.statistics
        self._statistics = self.layout.mask(statistics).to(self.device) if statistics else None
        is_personal = torch.arange(self.layout.num_parameters, device=self.device) >= self.layout.num_shared
        self._personal = is_personal if self.layout.num_personal else None
        twice = self.algorithm.second_derivatives
        self._model = FunctionalModel(model, self.layout, resources.precision, resources.compile, twice)
        num_classes = int(getattr(model, "num_classes", labels.max() + 1))
        self.samples = ClientSamples(config, images, labels, partition, self.device, num_classes, bool(statistics))
        self._trainer = LocalTrainer(self.algorithm, self.samples, self.device, config.seed)
        self._evaluator = Evaluator(self.algorithm, self._model, self.samples, self.device, config.seed)

    @torch.no_grad()
    def train(self, training: LocalTraining, broadcast: Tensors, states: NDArray[np.float32]) -> Trained:
        """Train K clients from states (K, size) and sum up their uploads.

        A client whose result is not finite or out of range, or whose own weight is negative, is not accepted: it has no part
        in the sums, keeps its state, and is evaluated as if untrained.
        """
        clients = training.clients
        context = self._context(training.round, broadcast, full_rate=training.full_rate)
        before = self._unpacked(states)
        with self._model.mode(training=True, vectorised=len(clients) > 1):
            result = self._trainer.train(training, context, before)
        uploads, after = result.uploads, result.states
        sent = self._weighed(uploads)
        shared = context.broadcast["shared"]
        squares: Tensors = {}
        bounds = {}
        if training.sensitivity and len(shared):
            squares = squared_updates(uploads["shared"], shared, self.layout)
            bounds = {"shared": largest_entries(squares, shared)} if sent["shared"] is uploads["shared"] else {}
        accepted = acceptable(sent, after, self._uploads, bounds).cpu().numpy()
        for name, up in self._uploads.items():
            if up.weighed_by is not None:
                accepted = accepted & (uploads[up.weighed_by].amin(dim=1) >= 0).cpu().numpy()
            if up.groups is not None:  # what is summed up is their product
                accepted = accepted & self._fits(uploads, name, up).cpu().numpy()
        sums = self._sums(training, uploads, sent, squares, shared, accepted)
        packed, trained = self.state_layout.pack(after), uploads["shared"]
        if not accepted.all():
            keep = torch.from_numpy(accepted).to(self.device)[:, None]
            packed = torch.where(keep, packed, self.state_layout.pack(before))
            trained = torch.where(keep, trained, shared)
        evaluation = None
        if training.evaluate:
            now = replace(context, as_trained=True)
            state = {**self.state_layout.unpack(packed), **training.messages}
            evaluation = self._evaluated(clients, trained, state, now, accepted)
        return Trained(
            clients,
            sums,
            self._client_uploads(training, uploads, accepted),
            packed.cpu().numpy(),
            accepted,
            {name: value.cpu().numpy() for name, value in result.metrics.items()},
            {name: value.cpu().numpy() for name, value in result.metric_samples.items()},
            {kind: value.cpu().numpy() for kind, value in squares.items() if kind},
            evaluation,
            result.traffic.cpu().numpy() if result.traffic is not None else None,
        )

    def _evaluated(
        self, clients: Ints, shared: Tensor, state: Tensors, now: ClientContext, accepted: NDArray[np.bool_]
    ) -> Evaluation:
        """Clients (K,) as trained; those that are not accepted as they were before."""
        if accepted.all():
            return self._evaluator.clients(clients, shared, state, now)
        parts = []
        for as_trained, chosen in ((True, accepted), (False, ~accepted)):
            if chosen.any():
                at = torch.from_numpy(np.flatnonzero(chosen)).to(self.device)
                own = {name: rows[at] for name, rows in state.items()}
                context = replace(now, as_trained=as_trained)
                parts.append(self._evaluator.clients(clients[chosen], shared[at], own, context))
        return Evaluation.joined(parts, clients)

    def _fits(self, uploads: Tensors, name: str, upload: Upload) -> Tensor:
        """(K,) bool: whether what a client counts with in several means fits into fixed point."""
        assert upload.groups is not None
        largest = uploads[name].abs().amax(dim=1) * uploads[upload.groups].amax(dim=1)
        return largest < 2.0 ** (TOTAL_BITS - upload.scale_bits)

    def _weighed(self, uploads: Tensors) -> Tensors:
        """The uploads, each (K, n), as they are summed up: those that are weighed by another one times that."""
        sent = dict(uploads)
        for name, up in self._uploads.items():
            if up.times is not None:
                one = uploads[up.times].shape[1] == 1
                assert one, f"{up.times!r} must be one number (1,)"
                sent[name] = uploads[name] * uploads[up.times]
            elif up.mask is not None:
                assert uploads[up.mask].shape == uploads[name].shape, (
                    f"{up.mask!r} must have an entry for each of {name!r}"
                )
                sent[name] = uploads[name] * uploads[up.mask]
        return sent

    def _client_uploads(
        self, training: LocalTraining, uploads: Tensors, accepted: NDArray[np.bool_]
    ) -> ClientUploads | None:
        """What the server gets of each client that reports and is accepted."""
        names = [name for name, up in self._uploads.items() if up.weighting == "each"]
        if not names or training.prepare:
            return None
        chosen = accepted & (training.weights["uniform"].counts > 0)
        rows = torch.from_numpy(np.flatnonzero(chosen)).to(self.device)
        return ClientUploads(training.clients[chosen], {n: uploads[n][rows].float().cpu().numpy() for n in names})

    def _sums(
        self,
        training: LocalTraining,
        uploads: Tensors,
        sent: Tensors,
        squares: Tensors,
        shared: Tensor,
        accepted: NDArray[np.bool_],
    ) -> dict[str, FixedPoint]:
        """The weighted sum of each upload and, of trained parameters with ``squares``, of the directions of the updates."""
        left, sums = dict(sent), {}
        if squares:
            up = self._uploads["shared"]
            weights = training.weights[up.weighting]
            total, units = sum_and_directions(uploads["shared"], shared, squares, weights, accepted, self.layout)
            sums[DIRECTIONS] = fixed_point(units, weights.accepted(accepted), SCALE_BITS)
            if sent["shared"] is uploads["shared"] and up.groups is None:
                del left["shared"]
                sums["shared"] = fixed_point(total, weights.accepted(accepted), up.scale_bits)
        for name, values in left.items():
            up = self._uploads[name]
            if up.weighting == "each":
                continue
            weights = training.weights[up.weighting]
            if up.groups is not None:
                sums[name] = grouped_sum(values, uploads[up.groups], weights, accepted, up.scale_bits)
            else:
                sums[name] = weighted_sum(values, weights, accepted, up.scale_bits)
        return sums

    @torch.no_grad()
    def evaluate(
        self,
        round: int,
        clients: Ints,
        broadcast: Tensors,
        states: NDArray[np.float32],
        adapt: bool = True,
        messages: Tensors | None = None,
    ) -> Evaluation:
        """Evaluate clients (K,) with the shared parameters of ``broadcast`` and their own states (K, size).

        ``adapt``: after the adaptation that the algorithm asks for, if any. ``messages``: the server's, each (K, m).
        """
        context = self._context(round, broadcast)
        if self.evaluates_one_model(adapt):
            return self._evaluator.one_model(clients, context.broadcast["shared"])
        shared = context.broadcast["shared"].expand(len(clients), -1)
        state = {**self._unpacked(states), **(messages or {})}
        return self._evaluator.clients(clients, shared, state, context, adapt)

    def evaluates_one_model(self, adapt: bool = True) -> bool:
        """Whether ``evaluate`` evaluates all clients with the shared parameters as they are, and reads no states."""
        return evaluates_one_model(self.algorithm, self.layout.num_personal, adapt)

    @torch.no_grad()
    def evaluate_global(self, clients: Ints, broadcast: Tensors) -> Evaluation:
        """Evaluate one model, the shared one, on the test samples of clients (K,); only where everything is shared."""
        assert self.layout.num_personal == 0
        return self._evaluator.one_model(clients, broadcast["shared"])

    @torch.no_grad()
    def predictor(self, round: int, client: int, broadcast: Tensors, state: Tensors) -> Predictor:
        """The model with which a client with this state, each entry (n,), is evaluated, adapted if need be.

        ``state`` has the server's messages to it, too.
        """
        states = {name: vector[None] for name, vector in state.items()}
        context = self._context(round, broadcast)
        return self._evaluator.predictor(np.array([client]), broadcast["shared"][None], states, context)

    def _context(self, round: int, broadcast: Tensors, full_rate: bool = False) -> ClientContext:
        train, settings = self.config.train, self.config.train.optimizer
        factor = 1.0 if full_rate else rate_factor(train, self.config.rounds, round)
        optimizer = make_optimizer(settings, settings.lr * factor, self._statistics, self._personal)
        return ClientContext(
            self._model,
            self.layout,
            broadcast,
            optimizer,
            settings.lr,
            train.batch_size,
            round,
            self.config.rounds if self.algorithm.depends_on_rounds else None,
            self.config.cohort_size / self.config.data.num_clients,
        )

    def _unpacked(self, states: NDArray[np.float32]) -> Tensors:
        return self.state_layout.unpack(to_device(torch.from_numpy(states), self.device))
