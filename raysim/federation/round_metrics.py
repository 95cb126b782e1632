"""All metrics of a round, put together from ``metrics/``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.federation.client_batches import padding
from raysim.federation.evaluation_schedule import EvaluationSchedule
from raysim.federation.metrics.clients import (
    NOBODY,
    ClientResults,
    difference_metrics,
    global_metrics,
    new_clients_metrics,
)
from raysim.federation.metrics.cohort import TrainedCohort
from raysim.federation.metrics.communication import communication_metrics
from raysim.federation.metrics.sensitivity import sensitivity_metrics
from raysim.federation.metrics.system import NodeMetrics, speed_metrics
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.own_code import own_function
from raysim.storage.accuracy_history import AccuracyRow
from raysim.storage.records import Records
from raysim.training.aggregation import FixedPoint, PartialSum
from raysim.training.evaluation import Evaluation
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
from raysim.views import HEADLINE, Model, validation_names

Ints = NDArray[np.int64]


class RoundMetrics:
    """The metrics of the rounds of a run; what is kept of single clients goes into its ``Records``.

    Args:
        labels: (n,) of the whole data set.
        one_model: all clients are evaluated with the shared parameters as they are: ``aggregated/`` is ``global/``.
        domains: (N,) names of the clients' domains.
    """

    def __init__(
        self,
        config: Config,
        layout: ParameterLayout,
        labels: Ints,
        partition: Partition,
        schedule: EvaluationSchedule,
        one_model: bool,
        domains: NDArray[np.str_],
    ) -> None:
        self._domains = domains
        self._headline = HEADLINE[config.evaluate.protocol]
        self._algorithm, self._local_epochs = config.algorithm, config.train.local_epochs
        self._layout, self._labels, self._partition, self._schedule = layout, labels, partition, schedule
        self._one_model, self._new = one_model, config.evaluate.new_clients
        self._own = {name: own_function(name, "evaluate.metrics") for name in config.evaluate.metrics}
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
        self, sent: int, uploads: PartialSum, cohort_size: int, cohort: TrainedCohort
    ) -> dict[str, float]:
        """``communication/``: zero for a pooled model, which has no clients. ``sent`` numbers go to each client."""
        if self._algorithm.pooled:
            return {"communication/down_bytes": 0.0, "communication/up_bytes": 0.0}
        return communication_metrics(self._algorithm.uploads, sent, uploads, cohort_size, cohort)

    def as_trained(self, round: int, cohort: Ints, results: Sequence[TaskResult], records: Records) -> dict[str, float]:
        """``personalized/``: the cohort with what it has just trained, all others as the round found them.

        A pooled model is trained and aggregated at once, and belongs to no client: see ``after_step``.
        """
        if self._algorithm.pooled or not self._schedule.is_due(round):
            return {}
        parts: list[Evaluation | ClientResults] = [*evaluations_of(results, Train)]
        if untrained := evaluations_of(results, Evaluate):
            # Of the cohort, too, there are evaluations from before it trained, for the metrics of the round before.
            others = np.setdiff1d(self._schedule.evaluated(round), cohort)
            parts.append(ClientResults.merge(untrained).only(others))
        return self._of_family("personalized", round, parts, records)

    def after_step(
        self, round: int, so_far: dict[str, float], results: Sequence[TaskResult], records: Records
    ) -> dict[str, float]:
        """The metrics of a round so far, and those of what was evaluated with the parameters after its step.

        These are ``aggregated/``, ``difference/``, ``global/`` and ``new_clients/``.
        """
        parts = evaluations_of(results, Evaluate)
        metrics = so_far | self._of_family("aggregated", round, parts, records)
        if self._algorithm.pooled:
            metrics |= self._of_family("personalized", round, parts, records)
        if self._one_model and "aggregated/accuracy_weighted" in metrics:
            metrics["global/accuracy"] = metrics["aggregated/accuracy_weighted"]
        elif shared := evaluations_of(results, EvaluateGlobal):
            metrics |= global_metrics(ClientResults.merge(shared))
        before, after = evaluations_of(results, EvaluateNewClients), evaluations_of(results, AdaptNewClients)
        if self._new and self._schedule.is_last(round):
            metrics |= self._new_clients(before, after, records)
        return metrics | difference_metrics(metrics)

    def _of_family(
        self, family: Model, round: int, parts: Sequence[Evaluation | ClientResults], records: Records
    ) -> dict[str, float]:
        """The metrics of a family, from the evaluations of at least the clients that they are about, if none is lost.

        With those on validation samples, which are the headline's under a shorter name, too.
        """
        about, headline = self._schedule.reported(round), family == self._headline
        if not len(about):
            return {}
        everyone = ClientResults.merge(parts) if parts else NOBODY
        if self._schedule.is_last(round):
            auc = everyone.client_auc(self._labels[self._partition.tests(everyone.clients)])
            columns = {"clients": everyone.clients, "accuracy": everyone.accuracy, "auc": auc}
            records.final |= {f"{family}.{name}": values for name, values in columns.items()}
        those, expected = everyone.only(about), len(about)
        validates = self._partition.num_validation is not None
        names = [family, *validation_names(family, headline)] if validates else [family]
        if not len(those.clients):
            return {f"{name}/not_evaluated": float(expected) for name in names}
        records.accuracy.add(AccuracyRow(family, round, those.clients, those.accuracy))
        metrics = self._measured(family, those, self._partition.tests(those.clients), expected)
        if those.validation is not None:
            found = self._measured("", those.validation, self._partition.validations(those.clients), expected)
            metrics |= {f"{name}{key}": value for name in names[1:] for key, value in found.items()}
        return metrics

    def _measured(self, family: str, results: ClientResults, samples: Ints, expected: int) -> dict[str, float]:
        labels = self._labels[samples]
        metrics = results.metrics(family, labels, missing=expected - len(results.clients))
        results = replace(results, validation=None, domains=self._domains[results.clients])
        return metrics | results.own_metrics(family, self._own, labels, metrics)

    def _new_clients(
        self, before: Sequence[Evaluation], after: Sequence[Evaluation], records: Records
    ) -> dict[str, float]:
        """Of those that have both evaluations; one of them may have been lost."""
        both = [ClientResults.merge(parts) if parts else NOBODY for parts in (before, after)]
        first, second = both[0].only(both[1].clients), both[1].only(both[0].clients)
        records.new = {"clients": first.clients, "before": first.accuracy, "after": second.accuracy}
        missing = self._new - len(first.clients)
        return new_clients_metrics(first, second) | {"new_clients/not_evaluated": float(missing)}

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
