"""The round loop of one run: sample a cohort, train it, aggregate, evaluate, commit, log.

Runs inside the driver actor, on CPU tensors; everything that is trained is trained by the actors of the pool.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim import sensitivity
from raysim.aggregation import FixedPoint, PartialSum, combine
from raysim.cohort import TrainedCohort, evaluated_clients, sample_cohort
from raysim.context import ServerContext
from raysim.data.partitions import Partition
from raysim.evaluation import ClientResults
from raysim.optimizers import Tensors
from raysim.parameters import ParameterLayout
from raysim.personal_store import SlotFile, SlotIndex, StateLayout, check_space
from raysim.planning import Planner, padding
from raysim.scheduling import ActorPool
from raysim.tasks import RunSetup, Task, TaskResult

Ints = NDArray[np.int64]


LATE = 10**9  # indices of the evaluations that are left to the next round, apart from its own tasks


@dataclass(frozen=True)
class RoundReport:
    """How far a run is, told to whoever watches it."""

    round: int
    tasks_done: int
    tasks: int
    running: list[str]
    metrics: dict[str, float] | None = None
    """The round's metrics, once, when it is complete."""
    rejected: tuple[int, ...] = ()
    """Clients of the complete round whose result was not finite or out of range."""


@dataclass
class _Round:
    """A round whose training is done, and its metrics so far."""

    round: int
    metrics: dict[str, float]
    rejected: list[int]
    asked: Ints
    """(E,), the clients that its metrics are about."""
    results: list[TaskResult]
    """Evaluations that have arrived."""
    late: list[Task] = field(default_factory=list)
    """Evaluations that run beside the next round."""


class Run:
    """One run from its first round to its last.

    Args:
        setup: as the actors get it; ``clients_per_batch`` must be resolved.
        layout: of the run's model.
        pool: configured for this run.
        domains: of each client, for the table of clients.
        report: told how far the run is.
    """

    def __init__(
        self,
        setup: RunSetup,
        layout: ParameterLayout,
        pool: ActorPool,
        domains: NDArray[np.str_],
        report: Callable[[RoundReport], None],
    ) -> None:
        self.config, self._pool, self._domains, self._report = setup.config, pool, domains, report
        self._algorithm, self._layout = self.config.algorithm, layout
        labels, partition, initial = ray.get([setup.labels, setup.partition, setup.initial])
        self._labels: Ints = labels
        self._partition: Partition = partition
        theta = torch.from_numpy(initial.copy())
        state = self._algorithm.client_state(theta, layout)
        self._state_layout = StateLayout.of(state)
        self._initial_state = self._state_layout.pack(state).numpy()
        self._open_slots(setup.slot_file)
        self._planner = Planner(self.config, partition, self._index)
        self._open: _Round | None = None
        self._version, self._busy_seconds = 0, 0.0
        self.shared: Tensor = layout.split(theta)[0].clone()
        self._server_state = self._algorithm.server_init(self.shared)
        self._send()
        self.history: list[dict[str, float]] = []
        self.rejections: list[tuple[int, int]] = []
        """(round, client), for every client whose result was not accepted."""
        self.clients = pd.DataFrame()
        self._accuracy: list[tuple[int, Ints, NDArray[np.float64]]] = []

    def _open_slots(self, path: Path) -> None:
        config = self.config
        ever_trained = min(config.data.num_clients, config.rounds * config.cohort_size)
        check_space(path.parent, self._state_layout.size, ever_trained + config.cohort_size)
        self._slots, self._index = SlotFile(path, self._state_layout.size), SlotIndex(config.data.num_clients)

    def round(self, round: int) -> list[tuple[int, dict[str, float]]]:
        """One round; returns (round, metrics) of every round that is complete with it.

        What is evaluated after the server step is evaluated beside the next round's training, on the parameters that this
        next round starts from: so a round may be complete one call later, the last one with ``finish``.
        """
        start = time.perf_counter()
        cohort = sample_cohort(self.config, round)
        evaluating = (round + 1) % self.config.evaluate.every == 0 or round + 1 == self.config.rounds
        everyone = np.arange(self.config.data.num_clients)
        asked = evaluated_clients(self.config, cohort) if evaluating else np.array([], np.int64)
        evaluated = everyone if round + 1 == self.config.rounds else asked  # the last round's table has every client
        pooled = self._algorithm.pooled
        before = self.config.evaluate.protocol == "paper" and not pooled  # a pooled model belongs to no client
        messages = self._messages(cohort)
        sent = self._broadcast_bytes + sum(4 * rows.shape[1] for rows in messages.values())
        tasks = self._planner.training(round, cohort, messages, evaluating and before)
        if before:
            others = evaluated[np.isin(evaluated, cohort, assume_unique=True, invert=True)]
            tasks += self._planner.evaluation("evaluate", round, others, len(tasks))
        results, parts = self._run_tasks(round, tasks)
        trained = [result for result in results if result.task.kind == "train"]
        sums = combine(parts, round, {result.task.index for result in trained})
        directions, incoming = sums.pop(sensitivity.DIRECTIONS, None), self.shared
        means = self._server_step(round, sums, len(cohort))
        self._commit(trained)
        report = TrainedCohort(trained, self._partition.num_train)
        metrics = self._training_metrics(report, incoming, means, directions)
        received = sum(4 * len(s.total) for s in sums.values())
        metrics |= self._communication(sent, received, 0 if pooled else len(cohort))
        now = _Round(round, metrics, report.rejected, asked, results if before and evaluating else [])
        if evaluating:
            now.late = self._late(round, asked, evaluated, before)
        metrics |= self._system(start, cohort, [] if pooled else [result.task for result in trained])
        return self._complete(now)

    def finish(self) -> list[tuple[int, dict[str, float]]]:
        """What the last round still has to evaluate."""
        if self._open is None:
            return []
        self._run_tasks(self._open.round, [])
        return self._complete(None)

    def _late(self, round: int, asked: Ints, evaluated: Ints, before: bool) -> list[Task]:
        """What is evaluated with the parameters after the server step: clients, or the shared model itself."""
        late = [] if before else self._planner.evaluation("evaluate", round, evaluated, LATE)
        if self._layout.num_personal == 0:
            late += self._planner.evaluation("global", round, asked, LATE + len(late))
        return late

    def _complete(self, now: _Round | None) -> list[tuple[int, dict[str, float]]]:
        """Close the round before, whose evaluations have all arrived, and this one if it waits for nothing."""
        done = [self._open] if self._open is not None else []
        self._open = None
        if now is not None and now.late:
            self._open = now
        elif now is not None:
            done.append(now)
        for row in done:
            if row.results:
                row.metrics |= self._evaluation_metrics(row)
            self.history.append({"round": float(row.round), **row.metrics})
            self.rejections += [(row.round, client) for client in row.rejected]
            self._report(RoundReport(row.round, 0, 0, [], row.metrics, tuple(row.rejected)))
        return [(row.round, row.metrics) for row in done]

    @property
    def num_states(self) -> int:
        """How many clients have a state of their own by now."""
        return int((self._index.slots >= 0).sum())

    def close(self) -> None:
        self._slots.close()

    def accuracy(self) -> dict[str, NDArray[Any]]:
        """``rounds`` (E,) that were evaluated and ``accuracy`` (E, N) of every client, NaN where it was not."""
        table = np.full((len(self._accuracy), self.config.data.num_clients), np.nan)
        for row, (_, clients, values) in zip(table, self._accuracy, strict=True):
            row[clients] = values
        return {"rounds": np.array([round for round, _, _ in self._accuracy], np.int64), "accuracy": table}

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the shared parameters, of every client's state in id order, and of all metrics that are results."""
        shared = hashlib.sha256(self.shared.numpy().tobytes())
        personal = hashlib.sha256()
        ids = np.flatnonzero(self._index.slots >= 0)
        for chunk in np.split(ids, range(1024, len(ids), 1024)):
            personal.update(chunk.tobytes())
            personal.update(self._slots.read(self._index.slots[chunk], self._initial_state).tobytes())
        results = [{k: v for k, v in row.items() if not k.startswith("system/")} for row in self.history]
        metrics = hashlib.sha256(repr([sorted(row.items()) for row in results]).encode())
        named = {"shared": shared, "personal": personal, "metrics": metrics}
        return {name: sha.hexdigest() for name, sha in named.items()}

    # Tasks.

    def _messages(self, cohort: Ints) -> dict[str, NDArray[np.float32]]:
        if not self._algorithm.reads_cohort_states:
            return {}
        rows = torch.from_numpy(self._slots.read(self._index.slots[cohort], self._initial_state))
        messages = self._algorithm.server_messages(self._state_layout.unpack(rows))
        return {name: m.float().numpy() for name, m in messages.items()}

    def _run_tasks(self, round: int, tasks: list[Task]) -> tuple[list[TaskResult], list[PartialSum]]:
        """Run tasks, and those that the round before left, whose results go to it."""

        def retry(task: Task) -> Task:
            # Fresh slots: the lost attempt may have written to its own, and those are never used again.
            return task if task.write is None else replace(task, write=self._index.allocate(len(task.clients)))

        def report(done: int, total: int, running: list[str]) -> None:
            self._report(RoundReport(round, done, total, running))

        before = self._open.late if self._open is not None else []
        results, parts = self._pool.run(round, tasks + before, self._version, self._broadcast, retry, report)
        self._busy_seconds = sum(result.seconds for result in results)
        if self._open is not None:
            self._open.results += results[len(tasks) :]
        return results[: len(tasks)], parts

    # The server.

    def _send(self) -> None:
        """Put what the server sends to clients into the object store: once, read in place by every actor of the node."""
        broadcast = self._algorithm.broadcast(self.shared, self._server_state)
        self._broadcast_bytes = sum(4 * t.numel() for t in broadcast.values())
        self._version += 1
        self._broadcast = ray.put({name: tensor.float().numpy() for name, tensor in broadcast.items()})

    def _server_step(self, round: int, sums: dict[str, FixedPoint], cohort_size: int) -> Tensors:
        """Takes the step and sends its result; returns the mean uploads, or nothing if every client was rejected."""
        context = ServerContext(self._layout, round, cohort_size, self.config.data.num_clients)
        means = {name: sums[name].mean(up.scale_bits) for name, up in self._algorithm.uploads.items()}
        arrived = {name: mean for name, mean in means.items() if mean is not None}
        if len(arrived) < len(means):
            return {}
        shared, self._server_state = self._algorithm.server_step(self.shared, self._server_state, arrived, context)
        self.shared = shared.float().clone()
        self._send()
        return arrived

    def _commit(self, trained: list[TaskResult]) -> None:
        for result in trained:
            assert result.task.write is not None
            assert result.accepted is not None
            self._index.commit(result.task.clients, result.task.write, result.accepted)

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

    def _evaluation_metrics(self, row: _Round) -> dict[str, float]:
        shared = [r.evaluation for r in row.results if r.evaluation is not None and r.task.kind == "global"]
        own = [r.evaluation for r in row.results if r.evaluation is not None and r.task.kind != "global"]
        everyone = ClientResults.merge(own)
        metrics = everyone.only(row.asked).metrics(self._labels, self._partition)
        self._accuracy.append((row.round, everyone.clients, everyone.accuracy))
        if shared:
            merged = ClientResults.merge(shared)
            metrics["global/accuracy"] = float(merged.correct.sum() / merged.num_test.sum())
        if row.round + 1 == self.config.rounds:
            self.clients = self._client_table(everyone)
        return metrics

    def _system(self, start: float, cohort: Ints, trained: list[Task]) -> dict[str, float]:
        seconds = time.perf_counter() - start
        epochs = len(self._algorithm.epochs(self.config.train.local_epochs))
        samples = epochs * int(self._partition.num_train[cohort].sum())
        return {
            "system/round_seconds": seconds,
            "system/train_samples_per_second": samples / seconds,
            "system/actor_busy_fraction": self._busy_seconds / (len(self._pool.workers) * seconds),
            "system/padding_fraction": padding(trained, self._partition.num_train) if trained else 0.0,
        }

    def _client_table(self, results: ClientResults) -> pd.DataFrame:
        ids = results.clients
        return pd.DataFrame(
            {
                "client": ids,
                "accuracy": results.accuracy,
                "auc": results.client_auc(self._labels, self._partition),
                "train_samples": self._partition.num_train[ids],
                "test_samples": self._partition.num_test[ids],
                "domain": self._domains[ids],
            }
        )

    @staticmethod
    def _communication(down: int, up: int, cohort_size: int) -> dict[str, float]:
        """Bytes that a real federation would send in this round, over all clients of the cohort."""
        return {
            "communication/down_bytes": float(down * cohort_size),
            "communication/up_bytes": float(up * cohort_size),
        }
