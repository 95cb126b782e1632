"""The local training of K clients in lockstep, from what the server sent to their uploads.

Clients of unequal size are padded within each local epoch, so that all are always in the same epoch: a padded sample has
weight 0, and a client that has finished its epoch, or has no part in it, keeps its carry.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim import seeds
from raysim.algorithms import FederatedAlgorithm
from raysim.functional.context import ClientContext
from raysim.functional.optimizers import Tensors
from raysim.training.aggregation import Weights
from raysim.training.for_each_client import EachClient, select
from raysim.training.sample_batches import ClientSamples, Pool, to_device

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
        prepare: train in the phase ``prepare`` (``FederatedAlgorithm.prepares``), before round 0.
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
    prepare: bool = False


@dataclass(frozen=True)
class LocalResult:
    """What K clients have after their local steps.

    Attributes:
        uploads, states: each entry (K, n).
        metrics: each (K,): a client's mean over the samples of those of its local steps that report the metric.
        metric_samples: each (K,): how many samples that mean is over; 0 if the client had no such step.
        traffic: (K, 2): how many numbers each was sent and sends; None if the method does not say so.
    """

    uploads: Tensors
    states: Tensors
    metrics: Tensors
    metric_samples: Tensors
    traffic: Tensor | None


class LocalTrainer:
    """Trains any clients of a run.

    Args:
        seed: of the run.
    """

    def __init__(self, algorithm: FederatedAlgorithm, samples: ClientSamples, device: torch.device, seed: int) -> None:
        self._algorithm, self._samples, self._device, self._seed = algorithm, samples, device, seed

    def train(self, training: LocalTraining, context: ClientContext, before: Tensors) -> LocalResult:
        """Train K clients with states ``before``, each (K, n)."""
        algorithm, samples = self._algorithm, self._samples
        phases = ["prepare"] * training.local_epochs if training.prepare else algorithm.epochs(training.local_epochs)
        indices = [training.pooled] if training.pooled is not None else samples.training_indices(training.clients)
        pool = Pool.gather(samples.data, indices)
        state = {**before, **training.messages}
        data = samples.client_data(indices)
        part = takes_part(algorithm, EachClient(data), state, phases, context)
        trains = np.array([phase not in algorithm.whole_phases for phase in phases])
        steps = self._steps(pool, part[:, trains], training)
        each = EachClient(data._replace(num_steps=to_device(torch.from_numpy(steps.astype(np.float32)), self._device)))
        purpose = "prepare" if training.prepare else "dropout"
        seeds.seed_torch(self._device, self._seed, purpose, training.round, int(training.clients[0]))
        carry = each(context, lambda ctx, state: algorithm.client_init(state, ctx))(state)
        carry, metrics, seen = self._epochs(training, context, each, carry, pool, phases, part, steps)
        uploads, after = each(context, lambda ctx, carry: algorithm.client_final(carry, ctx))(carry)
        assert uploads.keys() == algorithm.uploads.keys(), (
            f"client_final uploads {sorted(uploads)}, but {type(algorithm).__name__}.uploads declares "
            f"{sorted(algorithm.uploads)}"
        )
        traffic = None
        if algorithm.has_own("traffic") and not training.prepare:
            traffic = each(context, lambda ctx, state, sent: algorithm.traffic(state, sent, ctx))(state, uploads)
        return LocalResult(uploads, after, metrics, seen, traffic)

    def _epochs(
        self,
        training: LocalTraining,
        context: ClientContext,
        each: EachClient,
        carry: Any,
        pool: Pool,
        phases: list[str],
        part: NDArray[np.bool_],
        left: Ints,
    ) -> tuple[Any, Tensors, Tensors]:
        """All local steps of K clients, of which each has a ``part`` (K, phases) in the epochs, and does ``left`` (K,)
        steps; returns the last carry, each metric's mean over a client's samples (K,), and over how many (K,) it is."""
        algorithm, samples = self._algorithm, self._samples
        purpose = "prepare" if training.prepare else "batches"
        order = samples.order(purpose, training.round, training.clients, pool, len(phases))
        working = self._working(training, phases, part, left, pool)
        on_device = None if working.all() else to_device(torch.from_numpy(working), self._device)
        held = samples.held_back(pool, algorithm.held_back()) if algorithm.held_back() else None
        totals: Tensors = {}
        seen: Tensors = {}  # per metric: an algorithm may report one in some of its phases only
        for epoch, phase in enumerate(phases):
            now = replace(context, epoch=epoch, phase=phase)
            step = each(now, lambda ctx, carry, batch: algorithm.client_step(carry, batch, ctx))
            chosen = held if held is None or phase in algorithm.held_back_phases else 1 - held
            steps = samples.batches(pool, order, epoch, algorithm.batches_per_step, chosen)
            for number, (batch, everyone) in enumerate(islice(steps, training.steps_per_epoch)):
                if not working[epoch, number].any():
                    break
                new, metrics = step(carry, batch)
                count = batch.mask.sum(dim=1)
                if on_device is not None and not working[epoch, number].all():
                    count, everyone = count * on_device[epoch, number], False
                active = count > 0
                carry = new if everyone else select(active, new, carry)
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + torch.where(active, value * count, 0.0)
                    seen[name] = seen.get(name, 0.0) + count
        return carry, {name: total / seen[name].clamp(min=1) for name, total in totals.items()}, seen

    def _working(
        self, training: LocalTraining, phases: list[str], part: NDArray[np.bool_], left: Ints, pool: Pool
    ) -> NDArray[np.bool_]:
        """(epochs, steps of an epoch, K): which clients take part in which step. Known before any of them, so that none
        waits for the host."""
        per_epoch = self._samples.steps_per_epoch(pool.counts, self._algorithm.batches_per_step)
        if training.steps_per_epoch is not None:
            per_epoch = np.minimum(per_epoch, training.steps_per_epoch)
        working = np.zeros((len(phases), int(per_epoch.max()), len(left)), np.bool_)
        for epoch, phase in enumerate(phases):
            whole = phase in self._algorithm.whole_phases
            for number, row in enumerate(working[epoch]):
                row[:] = part[:, epoch] & ((left > 0) | whole)
                if not whole:
                    left = left - (row & (number < per_epoch))
        return working

    def _steps(self, pool: Pool, part: NDArray[np.bool_], training: LocalTraining) -> Ints:
        """(K,): how many local steps each client does, with a ``part`` (K, epochs) in the epochs that train."""
        steps = self._samples.steps_per_epoch(pool.counts, self._algorithm.batches_per_step)
        if training.steps_per_epoch is not None:
            steps = np.minimum(steps, training.steps_per_epoch)
        planned: Ints = steps * part.sum(axis=1)
        if training.work_share is None:
            return planned
        return np.maximum(np.minimum(1, planned), (training.work_share * planned).astype(np.int64))


def takes_part(
    algorithm: FederatedAlgorithm, each: EachClient, state: Tensors, phases: list[str], context: ClientContext
) -> NDArray[np.bool_]:
    """(K, phases): which of the phases each of K clients goes through."""
    if not algorithm.has_own("takes_part"):
        return np.ones((each.num_clients, len(phases)), np.bool_)
    part: Tensor = each(context, lambda ctx, state: algorithm.takes_part(state, phases, ctx))(state)
    return part.cpu().numpy()
