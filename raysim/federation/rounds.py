"""The round loop of one run: sample a cohort, train it, aggregate, evaluate, commit.

Runs inside the driver actor, on CPU tensors; everything that is trained is trained by the actors of the pool.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.training import sensitivity
from raysim.workers.actor_pool import ActorPool
from raysim.training.aggregation import FixedPoint, combine
from raysim.storage.checkpoint import Checkpoint, OpenRound, Snapshot
from raysim.federation.cohort import TrainedCohort, evaluated_clients, sample_cohort
from raysim.functional.context import ServerContext
from raysim.data.partitioners import Partition
from raysim.workers.dispatch import Done
from raysim.federation.metrics.clients import ClientResults
from raysim.workers.node_states import StateNodes
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.storage.slot_file import NEVER_TRAINED, SlotIndex, StateLayout, check_space
from raysim.federation.client_batches import Planner, padding
from raysim.storage.records import Records, RoundRecord
from raysim.federation.metrics.system import SystemMetrics
from raysim.training.tasks import RunSetup, Task, TaskResult

Ints = NDArray[np.int64]


LATE = 10**9  # indices of the evaluations that are left to the next round, apart from its own tasks


@dataclass(frozen=True)
class RoundReport:
    """How far a run is, told to whoever watches it."""

    round: int
    tasks_done: int
    tasks: int
    running: list[str]
    completed: RoundRecord | None = None
    """What the round has to say, once, when it is complete."""


@dataclass
class _Round:
    """A round whose training is done, and its metrics so far."""

    round: int
    metrics: dict[str, float]
    rejected: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    late: list[Task] = field(default_factory=list)
    """Evaluations that run beside the next round."""
    results: list[TaskResult] = field(default_factory=list)
    """Those of them that have arrived."""


class Run:
    """One run from its first round, or from a checkpoint, to its last.

    Args:
        setup: as the actors get it; ``clients_per_batch`` must be resolved.
        layout: of the run's model.
        pool: configured for this run.
        states: where the personal states of the run are, all of them still free.
        report: told how far the run is.
        checkpoint: to go on from.

    Attributes:
        next_round: the round that ``round`` takes next.
        timeline: what ran where, when, in the last round but one, as ``plots.plot_timeline`` draws it.
    """

    def __init__(
        self,
        setup: RunSetup,
        layout: ParameterLayout,
        pool: ActorPool,
        states: StateNodes,
        report: Callable[[RoundReport], None],
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.config, self._pool, self._report = setup.config, pool, report
        self._algorithm, self._layout, self._states = self.config.algorithm, layout, states
        labels, partition, initial = ray.get([setup.labels, setup.partition, setup.initial])
        self._labels: Ints = labels
        self._partition: Partition = partition
        theta = torch.from_numpy(initial.copy())
        state = self._algorithm.client_state(theta, layout)
        self._state_layout = StateLayout.of(state)
        self._initial_state = self._state_layout.pack(state).numpy()
        ever_trained = min(self.config.data.num_clients, self.config.rounds * self.config.cohort_size)
        check_space(states.folder, self._state_layout.size, ever_trained + self.config.cohort_size)
        self.index = SlotIndex(self.config.data.num_clients)
        self._planner = Planner(self.config, partition, self.index)
        self._open: _Round | None = None
        self._version, self._busy_seconds, self.next_round = 0, 0.0, 0
        self.shared: Tensor = layout.split(theta)[0].clone()
        self._server_state = self._algorithm.server_init(self.shared)
        self.records = Records()
        self.timeline: pd.DataFrame | None = None
        self._node = SystemMetrics()
        if checkpoint is not None:
            self._restore(checkpoint)
        self._send()

    def _restore(self, checkpoint: Checkpoint) -> None:
        manifest, self.records = checkpoint.manifest, checkpoint.records
        self.next_round = manifest.round
        self.shared = torch.from_numpy(checkpoint.shared.copy())
        self._server_state = {name: torch.from_numpy(value.copy()) for name, value in checkpoint.server_state.items()}
        for clients, rows in checkpoint.states():
            addresses = self.index.allocate(len(clients))
            self._states.own.write(addresses, np.ascontiguousarray(rows))
            self.index.addresses[clients] = addresses
        if manifest.open is not None:
            left = manifest.open
            self._open = _Round(left.round, dict(left.metrics), list(left.rejected), list(left.dropped))
            self._open.late = self._late(left.round)

    def snapshot(self) -> Snapshot:
        """The run as it is between two rounds; ``index.hold`` keeps its states where they are."""
        left = self._open
        records = self.records
        return Snapshot(
            self.next_round,
            self.shared.numpy(),
            {name: tensor.numpy() for name, tensor in self._server_state.items()},
            Records(list(records.rounds), list(records.accuracy), dict(records.final), dict(records.new)),
            OpenRound(round=left.round, metrics=left.metrics, rejected=left.rejected, dropped=left.dropped)
            if left
            else None,
            self.index.addresses.copy(),
            self.index.versions.copy(),
        )

    def round(self) -> list[RoundRecord]:
        """One round; returns all rounds that are complete with it.

        What is evaluated after the server step is evaluated beside the next round's training, on the parameters that this
        next round starts from: so a round may be complete one call later, the last one with ``finish``.

        Raises:
            StatesLost: the node that had a client's state is gone; the run is of no use any more.
        """
        start, round = time.perf_counter(), self.next_round
        cohort = sample_cohort(self.config, round)
        messages = self._messages(self.index.addresses[cohort])
        sent = self._broadcast_bytes + sum(4 * rows.shape[1] for rows in messages.values())
        tasks = self._planner.training(round, cohort, messages, self._evaluates(round) and self._evaluates_before)
        if self._evaluates_before:
            everyone = self._evaluated(round)
            others = everyone[np.isin(everyone, cohort, assume_unique=True, invert=True)]
            tasks += self._planner.evaluation("evaluate", round, others, len(tasks))
        done = self._run_tasks(round, tasks)
        if done.results and round == max(0, self.config.rounds - 2):  # one like all others: the last evaluates more
            self.timeline = timeline(done.results)
        trained = [result for result in done.results if result.task.kind == "train"]
        sums = combine(done.parts, round, {result.task.index for result in trained})
        directions, incoming = sums.pop(sensitivity.DIRECTIONS, None), self.shared
        means = self._server_step(round, sums, len(cohort))
        self._commit(trained)
        dropped = sorted(c for task in done.dropped if task.kind == "train" for c in task.clients.tolist())
        report = TrainedCohort(trained, self._partition.num_train, tuple(dropped))
        now = _Round(round, self._training_metrics(report, incoming, means, directions), report.rejected, dropped)
        received = sum(4 * len(s.total) for s in sums.values())
        pooled = self._algorithm.pooled
        now.metrics |= {  # bytes that a real federation would send in this round, over all clients of the cohort
            "communication/down_bytes": float(sent * (0 if pooled else len(cohort))),
            "communication/up_bytes": float(received * (0 if pooled else int(report.sent.sum()))),
        }
        if self._evaluates_before and self._evaluates(round):
            now.metrics |= self._personalized(round, done.results)
        now.late = self._late(round)
        now.metrics |= self._system(start, cohort, [] if pooled else [result.task for result in trained])
        self.next_round = round + 1
        return self._complete(now)

    def finish(self) -> list[RoundRecord]:
        """What the last round still has to evaluate."""
        if self._open is None:
            return []
        self._run_tasks(self._open.round, [])
        return self._complete(None)

    # Who is evaluated, when.

    @property
    def _evaluates_before(self) -> bool:
        """Whether clients are evaluated before the server step; a pooled model belongs to no client."""
        return self.config.evaluate.protocol == "paper" and not self._algorithm.pooled

    def _evaluates(self, round: int) -> bool:
        return (round + 1) % self.config.evaluate.every == 0 or round + 1 == self.config.rounds

    def _asked(self, round: int) -> Ints:
        """The clients (E,) that the round's metrics are about."""
        if not self._evaluates(round):
            return np.array([], np.int64)
        return evaluated_clients(self.config, sample_cohort(self.config, round))

    def _evaluated(self, round: int) -> Ints:
        """And those that are evaluated: the last round's table has every client."""
        return np.arange(self.config.data.num_clients) if round + 1 == self.config.rounds else self._asked(round)

    def _late(self, round: int) -> list[Task]:
        """What is evaluated with the parameters after the server step: clients, or the shared model itself."""
        if not self._evaluates(round):
            return []
        late = []
        if not self._evaluates_before:
            late = self._planner.evaluation("evaluate", round, self._evaluated(round), LATE)
        if self._layout.num_personal == 0:
            late += self._planner.evaluation("global", round, self._asked(round), LATE + len(late))
        if round + 1 == self.config.rounds and (new := self.config.evaluate.new_clients):
            messages = self._messages(np.full(new, NEVER_TRAINED))
            late += self._planner.newcomers(round, messages, LATE + len(late))
        return late

    def _complete(self, now: _Round | None) -> list[RoundRecord]:
        """Close the round before, whose evaluations have all arrived, and this one if it waits for nothing."""
        done = [self._open] if self._open is not None else []
        self._open = None
        if now is not None and now.late:
            self._open = now
        elif now is not None:
            done.append(now)
        records = []
        for row in done:
            metrics = row.metrics | self._late_metrics(row)
            millis = int(time.time() * 1000)
            record = RoundRecord(row.round, millis, metrics, tuple(row.rejected), tuple(row.dropped))
            self._report(RoundReport(row.round, 0, 0, [], record))
            records.append(record)
        self.records.rounds += records
        return records

    @property
    def num_states(self) -> int:
        """How many clients have a state of their own by now."""
        return int((self.index.addresses >= 0).sum())

    @property
    def state_size(self) -> int:
        """Float32 numbers of a client's state."""
        return self._state_layout.size

    def read_states(self, addresses: Ints) -> NDArray[np.float32]:
        """(K, state_size), at addresses (K,)."""
        return self._states.own.read(addresses, self._initial_state)

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the shared parameters, of every client's state in id order, and of all metrics that are results."""
        shared = hashlib.sha256(self.shared.numpy().tobytes())
        personal = hashlib.sha256()
        ids = np.flatnonzero(self.index.addresses >= 0)
        for chunk in np.split(ids, range(1024, len(ids), 1024)):
            personal.update(chunk.tobytes())
            personal.update(self.read_states(self.index.addresses[chunk]).tobytes())
        return {"shared": shared.hexdigest(), "personal": personal.hexdigest(), "metrics": self.records.checksum()}

    def models(self, with_states: bool = True) -> tuple[Tensors, Ints, Tensors, Tensors]:
        """What the server would send now; clients (M,) that have trained, their states (each (M, n)), that of all others.

        Without states M is 0: all of them may be larger than memory.
        """
        ids = np.flatnonzero(self.index.addresses >= 0) if with_states else np.zeros(0, np.int64)
        rows = torch.from_numpy(self.read_states(self.index.addresses[ids]))
        initial = self._state_layout.unpack(torch.from_numpy(self._initial_state))
        sent = self._algorithm.broadcast(self.shared, self._server_state)
        return sent, ids, self._state_layout.unpack(rows), initial

    # Tasks.

    def _messages(self, addresses: Ints) -> dict[str, NDArray[np.float32]]:
        """A row for each of the clients with states at addresses (K,)."""
        if not self._algorithm.reads_cohort_states:
            return {}
        rows = torch.from_numpy(self.read_states(addresses))
        messages = self._algorithm.server_messages(self._state_layout.unpack(rows))
        return {name: m.float().numpy() for name, m in messages.items()}

    def _run_tasks(self, round: int, tasks: list[Task]) -> Done:
        """Run tasks, and those that the round before left, whose results go to it."""

        def ready(task: Task, node: int) -> Task:
            # Fresh addresses for every attempt: one that was lost may have written to its own, and may still do so.
            return replace(task, write=self.index.allocate(len(task.clients), node)) if task.kind == "train" else task

        def report(done: int, total: int, running: list[str]) -> None:
            self._report(RoundReport(round, done, total, running))

        before = self._open.late if self._open is not None else []
        done = self._pool.run(round, tasks + before, self._version, self._broadcast, ready, report)
        self._busy_seconds = sum(result.seconds for result in done.results)
        if self._open is not None:
            self._open.results += [result for result in done.results if result.task.index >= LATE]
        return replace(done, results=[result for result in done.results if result.task.index < LATE])

    # The server.

    def _send(self) -> None:
        """Put what the server sends to clients into the object store: once, read in place by every actor of a node."""
        broadcast = self._algorithm.broadcast(self.shared, self._server_state)
        self._broadcast_bytes = sum(4 * t.numel() for t in broadcast.values())
        self._version += 1
        self._broadcast = ray.put({name: tensor.float().numpy() for name, tensor in broadcast.items()})

    def _server_step(self, round: int, sums: dict[str, FixedPoint], cohort_size: int) -> Tensors:
        """Takes the step and sends its result; returns the mean uploads, or nothing if no client reported."""
        context = ServerContext(self._layout, round, cohort_size, self.config.data.num_clients)
        uploads = self._algorithm.uploads
        means = {name: sums[name].mean(up.scale_bits) for name, up in uploads.items() if name in sums}
        arrived = {name: mean for name, mean in means.items() if mean is not None}
        if len(arrived) < len(uploads):
            return {}
        shared, self._server_state = self._algorithm.server_step(self.shared, self._server_state, arrived, context)
        self.shared = shared.float().clone()
        self._send()
        return arrived

    def _commit(self, trained: list[TaskResult]) -> None:
        for result in trained:
            assert result.task.write is not None
            assert result.accepted is not None
            self.index.commit(result.task.clients, result.task.write, result.accepted)

    # Metrics.

    def _training_metrics(
        self, cohort: TrainedCohort, incoming: Tensor, means: Tensors, directions: FixedPoint | None
    ) -> dict[str, float]:
        direction = directions.mean(sensitivity.SCALE_BITS) if directions is not None else None
        if direction is None or not means:
            return cohort.metrics()
        update = means["shared"] - incoming
        squares = cohort.squared_updates(self._algorithm.uploads["shared"].weighting)
        return cohort.metrics() | sensitivity.metrics(update, direction, squares, self._layout)

    def _late_metrics(self, row: _Round) -> dict[str, float]:
        metrics = self._personalized(row.round, [r for r in row.results if r.task.kind == "evaluate"])
        shared = [r.evaluation for r in row.results if r.evaluation is not None and r.task.kind == "global"]
        if shared:
            merged = ClientResults.merge(shared)
            metrics["global/accuracy"] = float(merged.correct.sum() / merged.num_test.sum())
        return metrics | self._newcomers(row.results)

    def _newcomers(self, results: list[TaskResult]) -> dict[str, float]:
        """Clients that never took part, before and after they adapted."""
        parts = {
            kind: [r.evaluation for r in results if r.evaluation is not None and r.task.kind == kind]
            for kind in ("unadapted", "adapted")
        }
        if not all(parts.values()):
            return {}
        before, after = (ClientResults.merge(evaluations) for evaluations in parts.values())
        before, after = before.only(after.clients), after.only(before.clients)  # one may have been dropped
        self.records.new = {"clients": before.clients, "before": before.accuracy, "after": after.accuracy}
        return {
            "new_clients/accuracy_before_mean": float(before.accuracy.mean()),
            "new_clients/accuracy_before_std": float(before.accuracy.std()),
            "new_clients/accuracy_after_mean": float(after.accuracy.mean()),
            "new_clients/accuracy_after_std": float(after.accuracy.std()),
        }

    def _personalized(self, round: int, results: list[TaskResult]) -> dict[str, float]:
        parts = [r.evaluation for r in results if r.evaluation is not None]
        if not parts:
            return {}
        everyone = ClientResults.merge(parts)
        self.records.accuracy.append((round, everyone.clients, everyone.accuracy))
        if round + 1 == self.config.rounds:
            auc = everyone.client_auc(self._labels, self._partition)
            self.records.final = {"clients": everyone.clients, "accuracy": everyone.accuracy, "auc": auc}
        return everyone.only(self._asked(round)).metrics(self._labels, self._partition)

    def _system(self, start: float, cohort: Ints, trained: list[Task]) -> dict[str, float]:
        seconds = time.perf_counter() - start
        epochs = len(self._algorithm.epochs(self.config.train.local_epochs))
        samples = epochs * int(self._partition.num_train[cohort].sum())
        return {
            "system/round_seconds": seconds,
            "system/train_samples_per_second": samples / seconds,
            "system/actor_busy_fraction": self._busy_seconds / (max(1, len(self._pool.workers)) * seconds),
            "system/padding_fraction": padding(trained, self._partition.num_train) if trained else 0.0,
            **self._node.read(),
        }


def timeline(results: list[TaskResult]) -> pd.DataFrame:
    """A row per client batch: ``actor``, ``kind``, ``start`` and ``seconds``, and how many ``clients`` it has."""
    first = min(result.started for result in results)
    rows = [(r.actor, r.task.kind, r.started - first, r.seconds, len(r.task.clients)) for r in results]
    return pd.DataFrame(rows, columns=["actor", "kind", "start", "seconds", "clients"]).sort_values(["actor", "start"])
