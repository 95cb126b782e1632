"""Rounds whose server step is done, on their way to their records: what they still wait for, and their metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raysim.config.schema import Config
from raysim.federation.cohort import sample_cohort
from raysim.federation.evaluation_schedule import EvaluationSchedule
from raysim.federation.round_metrics import RoundMetrics
from raysim.storage.checkpoint import PendingRoundEntry
from raysim.storage.records import Records, RoundRecord
from raysim.training.tasks import Task, TaskResult, Train
from raysim.workers.dispatch import Completed

NOTHING = Completed([], [], [])


@dataclass(frozen=True)
class PendingRound:
    """A round after its server step, with its metrics so far.

    Attributes:
        results: of the round's own tasks, from which ``personalized/`` is still to be measured; None once it is.
        not_evaluated: clients that have no evaluation as trained.
    """

    round: int
    metrics: dict[str, float]
    results: Sequence[TaskResult] | None
    rejected: list[int]
    dropped: list[int]
    not_evaluated: list[int]


class PendingRounds:
    """The last rounds of a run, from their server step to their records.

    An evaluated round waits for evaluations with the parameters that it ended with, which run beside the next round's
    training. Its metrics are computed when the actors have work again: AUC takes a while for many samples and classes.

    Attributes:
        waiting: the round that waits for evaluations, if any.
        records: of the rounds that are complete.
    """

    def __init__(self, config: Config, metrics: RoundMetrics, schedule: EvaluationSchedule) -> None:
        self._config, self._metrics, self._schedule = config, metrics, schedule
        self.waiting: PendingRound | None = None
        self.records = Records()
        self._evaluated: list[tuple[PendingRound, Completed]] = []
        self._unseen: list[RoundRecord] = []

    def restore(self, records: Records, left: PendingRoundEntry | None) -> None:
        """Go back to what a checkpoint has."""
        self.records = records
        if left is not None:
            lists = (list(left.rejected), list(left.dropped), list(left.not_evaluated))
            self.waiting = PendingRound(left.round, dict(left.metrics), None, *lists)

    def entry(self) -> PendingRoundEntry | None:
        """The round that waits, as a checkpoint keeps it; call ``measure`` before."""
        left = self.waiting
        if left is None:
            return None
        return PendingRoundEntry(
            round=left.round,
            metrics=left.metrics,
            rejected=left.rejected,
            dropped=left.dropped,
            not_evaluated=left.not_evaluated,
        )

    def add(self, now: PendingRound) -> None:
        """A round after its server step; the one before is ``evaluated`` by then."""
        assert self.waiting is None
        if self._schedule.is_due(now.round):
            self.waiting = now
        else:
            self._evaluated.append((now, NOTHING))

    def evaluated(self, completed: Completed) -> None:
        """The tasks that ran beside the next round, or after the last one: nobody waits any more."""
        if self.waiting is not None:
            self._evaluated.append((self.waiting, completed))
            self.waiting = None

    def completed(self) -> Iterator[RoundRecord]:
        """The records of rounds that are complete and were not yielded yet."""
        self.measure()
        while self._unseen:
            yield self._unseen.pop(0)

    def measure(self) -> None:
        """Compute all metrics that can be computed by now."""
        while self._evaluated:
            row, late = self._evaluated.pop(0)
            record = self._record(self._with_as_trained(row), late)
            self.records.rounds.append(record)
            self._unseen.append(record)
        if self.waiting is not None:
            self.waiting = self._with_as_trained(self.waiting)

    def _with_as_trained(self, row: PendingRound) -> PendingRound:
        if row.results is None:
            return row
        cohort = sample_cohort(self._config, row.round)
        metrics = row.metrics | self._metrics.as_trained(row.round, cohort, row.results, self.records)
        return replace(row, metrics=metrics, results=None)

    def _record(self, row: PendingRound, late: Completed) -> RoundRecord:
        """The record of a round, with the outcome of the evaluations that it waited for."""
        metrics = self._metrics.after_step(row.round, row.metrics, late.results, self.records)
        about = self._schedule.evaluated(row.round)
        if self._schedule.is_last(row.round):  # and new clients, whose ids come after all others
            about = np.arange(self._config.data.num_clients + self._config.evaluate.new_clients)
        lost = np.intersect1d(clients_of(late.dropped, training=False), about).tolist()
        left_out = tuple(row.rejected), tuple(row.dropped), tuple(sorted({*row.not_evaluated, *lost}))
        return RoundRecord(row.round, int(time.time() * 1000), metrics, *left_out)


def clients_of(tasks: Sequence[Task], training: bool) -> list[int]:
    """The clients of those tasks that train them, or of the others, ascending."""
    return sorted({client for task in tasks if isinstance(task, Train) is training for client in task.clients.tolist()})
