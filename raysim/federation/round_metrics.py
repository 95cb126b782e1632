"""All metrics of a round, put together from ``metrics/``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.federation.client_batches import padding
from raysim.federation.evaluation_schedule import EvaluationSchedule
from raysim.federation.metrics.clients import ClientResults, global_metrics, new_clients_metrics
from raysim.federation.metrics.cohort import TrainedCohort
from raysim.federation.metrics.communication import communication_metrics
from raysim.federation.metrics.sensitivity import sensitivity_metrics
from raysim.federation.metrics.system import NodeMetrics, speed_metrics
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.storage.records import Records
from raysim.training.aggregation import FixedPoint
from raysim.training.sensitivity import SCALE_BITS
from raysim.training.tasks import (
    AdaptNewClients,
    Evaluate,
    EvaluateGlobal,
    EvaluateNewClients,
    TaskResult,
    Train,
    TrainingReport,
    evaluations_of,
)

Ints = NDArray[np.int64]


class RoundMetrics:
    """The metrics of the rounds of a run; what is kept of single clients goes into its ``Records``.

    Args:
        labels: (n,) of the whole data set.
    """

    def __init__(
        self, config: Config, layout: ParameterLayout, labels: Ints, partition: Partition, schedule: EvaluationSchedule
    ) -> None:
        self._algorithm, self._local_epochs = config.algorithm, config.train.local_epochs
        self._layout, self._labels, self._partition, self._schedule = layout, labels, partition, schedule
        self._node = NodeMetrics()

    def of_training(
        self, cohort: TrainedCohort, incoming: Tensor, means: Tensors, directions: FixedPoint | None
    ) -> dict[str, float]:
        """``train/``, ``cohort/`` and ``sensitivity/``.

        Args:
            incoming: (S,) the shared parameters that the cohort was sent.
            means: of the uploads; empty if nobody reported.
            directions: the sum of the clients' updates as unit vectors.
        """
        direction = directions.mean(SCALE_BITS) if directions is not None else None
        if direction is None or not means:
            return cohort.metrics()
        squares = cohort.squared_updates(self._algorithm.uploads["shared"].weighting)
        return cohort.metrics() | sensitivity_metrics(means["shared"] - incoming, direction, squares, self._layout)

    def of_communication(
        self, down: int, sums: Mapping[str, FixedPoint], cohort_size: int, cohort: TrainedCohort
    ) -> dict[str, float]:
        """``communication/``: zero for a pooled model, which has no clients. ``down`` bytes are sent to each client."""
        size, senders = (0, 0) if self._algorithm.pooled else (cohort_size, int(cohort.sent.sum()))
        return communication_metrics(down, sums, size, senders)

    def of_evaluation(self, round: int, results: Sequence[TaskResult], records: Records) -> dict[str, float]:
        """``personalized/``, of clients that were evaluated beside or right after their training; none in some rounds."""
        if not (parts := evaluations_of(results, Train, Evaluate)):
            return {}
        everyone = ClientResults.merge(parts)
        records.accuracy.append((round, everyone.clients, everyone.accuracy))
        if self._schedule.is_last(round):
            auc = everyone.client_auc(self._labels, self._partition)
            records.final = {"clients": everyone.clients, "accuracy": everyone.accuracy, "auc": auc}
        about = self._schedule.reported(round)
        those = everyone.only(about)
        if not len(those.clients):
            return {}
        return those.metrics(self._labels, self._partition, missing=len(about) - len(those.clients))

    def after_step(self, round: int, results: Sequence[TaskResult], records: Records) -> dict[str, float]:
        """``personalized/``, ``global/`` and ``new_clients/``, of what was evaluated with the parameters after the step."""
        metrics = self.of_evaluation(round, results, records)
        if shared := evaluations_of(results, EvaluateGlobal):
            metrics |= global_metrics(shared)
        before, after = evaluations_of(results, EvaluateNewClients), evaluations_of(results, AdaptNewClients)
        if before and after:
            metrics |= self._new_clients(ClientResults.merge(before), ClientResults.merge(after), records)
        return metrics

    def _new_clients(self, before: ClientResults, after: ClientResults, records: Records) -> dict[str, float]:
        before, after = before.only(after.clients), after.only(before.clients)  # one may have been dropped
        records.new = {"clients": before.clients, "before": before.accuracy, "after": after.accuracy}
        return new_clients_metrics(before, after)

    def of_system(
        self,
        start: float,
        cohort: Ints,
        trained: Sequence[tuple[Train, TrainingReport]],
        busy_seconds: float,
        num_actors: int,
    ) -> dict[str, float]:
        """``system/``, of a round that began at ``start`` (``time.perf_counter``)."""
        num_train = self._partition.num_train
        epochs = len(self._algorithm.epochs(self._local_epochs))
        padded = padding([task for task, _ in trained], num_train) if trained and not self._algorithm.pooled else 0.0
        samples = epochs * int(num_train[cohort].sum())
        seconds = time.perf_counter() - start
        return speed_metrics(seconds, samples, busy_seconds, num_actors, padded) | self._node.read()
