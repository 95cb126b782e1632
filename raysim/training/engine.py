"""``ClientEngine``: trains a client batch, K clients at once, and sums up what they upload.

Algorithms are written for one client. The engine calls their functions through ``torch.func.vmap`` over the K clients of a
batch, or directly when there is one. Clients of unequal size are padded within each local epoch, so that all are always in
the same epoch: a padded sample has weight 0, and a client that has finished its epoch keeps its carry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from algorithms import FederatedAlgorithm
from raysim import seeds
from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.functional.context import ClientContext
from raysim.functional.loss_and_gradient import FunctionalModel
from raysim.functional.optimizers import Optimizer, Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.functional.state_layout import StateLayout
from raysim.training.aggregation import FixedPoint, Weights, acceptable, fixed_point, weighted_sum
from raysim.training.evaluation import Evaluation, Evaluator
from raysim.training.for_each_client import for_each_client, select
from raysim.training.sample_batches import ClientSamples, Pool, to_device
from raysim.training.sensitivity import DIRECTIONS, SCALE_BITS, directions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LocalTraining:
    """What K clients are to do in a call of ``ClientEngine.train``.

    Attributes:
        clients: (K,) ids.
        weights: of the clients (K,), by weighting (``samples``, ``uniform``).
        local_epochs: passes over a client's training samples, as given to the algorithm's ``epochs``.
        messages: rows (K, m) of ``FederatedAlgorithm.server_messages``.
        evaluate: evaluate the clients afterwards, with what they trained.
        sensitivity: also sum up the clients' updates as unit vectors.
        pooled: samples to train on in place of the clients' own; then K is 1.
        work_share: (K,) the share of its local steps that each client does, at least one step. None: all of them.
        steps_per_epoch: the number of steps after which every local epoch ends. None: all of them.
        full_rate: train at the undecayed learning rate, whatever ``train.schedule`` says for the round.
    """

    round: int
    clients: Ints
    weights: dict[str, Weights]
    local_epochs: int
    messages: Tensors = field(default_factory=dict)
    evaluate: bool = True
    sensitivity: bool = False
    pooled: Ints | None = None
    work_share: Floats | None = None
    steps_per_epoch: int | None = None
    full_rate: bool = False


@dataclass(frozen=True)
class Trained:
    """The result of training K clients in a round."""

    clients: Ints
    sums: dict[str, FixedPoint]
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
        self.layout = layout_of(model, self.algorithm)
        state = self.algorithm.client_state(initial, self.layout)
        self.state_layout = StateLayout.of(state)
        self.initial = initial
        self.initial_state = self.state_layout.pack(state).numpy()
        model = model.to(self.device).requires_grad_(False)
        resources, statistics = config.resources, self.layout.statistics
        self._statistics = self.layout.mask(statistics).to(self.device) if statistics else None
        self._model = FunctionalModel(model, self.layout, resources.precision, resources.compile)
        self.samples = ClientSamples(config, images, labels, partition, self.device, bool(statistics))
        self._evaluator = Evaluator(self.algorithm, self._model, self.samples, self.device, config.seed)

    @torch.no_grad()
    def train(self, training: LocalTraining, broadcast: Tensors, states: NDArray[np.float32]) -> Trained:
        """Train K clients from states (K, size) and sum up their uploads.

        A client whose result is not finite or out of range is not accepted: it has no part in the sums, keeps its state,
        and is evaluated as if untrained.
        """
        clients = training.clients
        context = self._context(training.round, broadcast, full_rate=training.full_rate)
        before = self._unpacked(states)
        with self._model.mode(training=True, vectorised=len(clients) > 1):
            uploads, after, metrics, seen = self._local_training(training, context, before)
        accepted = acceptable(uploads, after, self.algorithm.uploads).cpu().numpy()
        sums = {
            name: weighted_sum(uploads[name], training.weights[up.weighting], accepted, up.scale_bits)
            for name, up in self.algorithm.uploads.items()
        }
        squares: Tensors = {}
        if training.sensitivity and len(context.broadcast["shared"]):
            weights = training.weights[self.algorithm.uploads["shared"].weighting]
            updates = uploads["shared"] - context.broadcast["shared"]
            units, squares = directions(updates, weights, accepted, self.layout)
            sums[DIRECTIONS] = fixed_point(units, weights.accepted(accepted), SCALE_BITS)
        packed, shared = self.state_layout.pack(after), uploads["shared"]
        if not accepted.all():
            keep = torch.from_numpy(accepted).to(self.device)[:, None]
            packed = torch.where(keep, packed, self.state_layout.pack(before))
            shared = torch.where(keep, shared, context.broadcast["shared"])
        evaluation = None
        if training.evaluate:
            evaluation = self._evaluator.clients(clients, shared, self.state_layout.unpack(packed), context)
        return Trained(
            clients,
            sums,
            packed.cpu().numpy(),
            accepted,
            {name: value.cpu().numpy() for name, value in metrics.items()},
            {name: value.cpu().numpy() for name, value in seen.items()},
            {kind: value.double().cpu().numpy() for kind, value in squares.items()},
            evaluation,
        )

    @torch.no_grad()
    def evaluate(
        self, round: int, clients: Ints, broadcast: Tensors, states: NDArray[np.float32], adapt: bool = True
    ) -> Evaluation:
        """Evaluate clients (K,) with the shared parameters of ``broadcast`` and their own states (K, size).

        ``adapt``: after the adaptation that the algorithm asks for, if any.
        """
        context = self._context(round, broadcast)
        if not self.state_layout.size and not (adapt and self.algorithm.adapt_steps()):
            nothing = self.state_layout.unpack(torch.empty(0, device=self.device))
            theta = self.algorithm.personalize(context.broadcast["shared"], nothing, context)
            return self._evaluator.one_model(clients, theta)  # all clients have the same parameters
        shared = context.broadcast["shared"].expand(len(clients), -1)
        return self._evaluator.clients(clients, shared, self._unpacked(states), context, adapt)

    @torch.no_grad()
    def evaluate_global(self, clients: Ints, broadcast: Tensors) -> Evaluation:
        """Evaluate one model, the shared one, on the test samples of clients (K,); only where everything is shared."""
        assert self.layout.num_personal == 0
        return self._evaluator.one_model(clients, broadcast["shared"])

    @torch.no_grad()
    def personalized(self, round: int, clients: Ints, broadcast: Tensors, states: Tensors) -> Tensor:
        """The parameters (K, P) with which clients (K,) with states (each (K, n)) are evaluated, adapted if need be."""
        context = self._context(round, broadcast)
        return self._evaluator.personalized(clients, broadcast["shared"].expand(len(clients), -1), states, context)

    def _context(self, round: int, broadcast: Tensors, full_rate: bool = False) -> ClientContext:
        train, settings = self.config.train, self.config.train.optimizer
        decays = train.schedule == "cosine" and not full_rate
        decay = 0.5 * (1 + np.cos(np.pi * round / self.config.rounds)) if decays else 1.0
        optimizer = Optimizer(
            settings.name,
            settings.lr * float(decay),
            settings.momentum,
            settings.weight_decay,
            settings.clip_norm,
            self._statistics,
        )
        return ClientContext(self._model, self.layout, broadcast, optimizer, settings.lr, train.batch_size, round)

    def _unpacked(self, states: NDArray[np.float32]) -> Tensors:
        return self.state_layout.unpack(to_device(torch.from_numpy(states), self.device))

    def _local_training(
        self, training: LocalTraining, context: ClientContext, before: Tensors
    ) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        """Uploads (each (K, n)), states after training (each (K, n)), metrics and their samples (each (K,))."""
        for_each = for_each_client(len(training.clients))
        seeds.seed_torch(self.device, self.config.seed, "dropout", training.round, int(training.clients[0]))
        carry = for_each(lambda state: self.algorithm.client_init(state, context))({**before, **training.messages})
        carry, metrics, seen = self._local_epochs(training, context, for_each, carry)
        uploads, after = for_each(lambda carry: self.algorithm.client_final(carry, context))(carry)
        assert uploads.keys() == self.algorithm.uploads.keys(), (
            f"client_final uploads {sorted(uploads)}, but {type(self.algorithm).__name__}.uploads declares "
            f"{sorted(self.algorithm.uploads)}"
        )
        return uploads, after, metrics, seen

    def _local_epochs(
        self, training: LocalTraining, context: ClientContext, for_each: Any, carry: Any
    ) -> tuple[Any, Tensors, Tensors]:
        """All local steps of K clients; returns the last carry, each metric's mean over a client's samples (K,), and
        over how many samples (K,) it is."""
        samples, phases = self.samples, self.algorithm.epochs(training.local_epochs)
        pool = (
            samples.training(training.clients)
            if training.pooled is None
            else Pool.gather(samples.data, [training.pooled])
        )
        order = samples.order("batches", training.round, training.clients, pool, len(phases))
        left = self._steps_left(pool, len(phases), training.work_share)
        totals: Tensors = {}
        seen: Tensors = {}  # per metric: an algorithm may report one in some of its phases only
        for epoch, phase in enumerate(phases):
            now = replace(context, epoch=epoch, phase=phase)
            step = for_each(lambda carry, batch, now=now: self.algorithm.client_step(carry, batch, now))
            steps = samples.batches(pool, order, epoch, self.algorithm.batches_per_step)
            for batch, everyone in islice(steps, training.steps_per_epoch):
                if left is not None and not left.any():
                    break
                new, metrics = step(carry, batch)
                count = batch.mask.sum(dim=1)
                if left is not None:
                    count, everyone = count * to_device(torch.from_numpy(left > 0), self.device), False
                    left = left - (left > 0) * (batch.mask.cpu().numpy().any(axis=1))
                active = count > 0
                carry = new if everyone else select(active, new, carry)
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + torch.where(active, value * count, 0.0)
                    seen[name] = seen.get(name, 0.0) + count
        return carry, {name: total / seen[name].clamp(min=1) for name, total in totals.items()}, seen

    def _steps_left(self, pool: Pool, epochs: int, work_share: Floats | None) -> Ints | None:
        """(K,): how many local steps each client does; None if each does all of them."""
        if work_share is None:
            return None
        size = self.config.train.batch_size * self.algorithm.batches_per_step
        steps: Ints = np.maximum(1, (work_share * epochs * -(-pool.counts // size)).astype(np.int64))
        return steps
