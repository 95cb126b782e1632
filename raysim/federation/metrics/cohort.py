"""``train/...`` and ``cohort/...``: what the clients that trained report, reduced in client-id order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysim.training.tasks import Train, TrainingReport

Ints = NDArray[np.int64]
Of = Callable[[Train, TrainingReport], NDArray[np.generic]]
"""Gives one value per client (K,) of a client batch."""


@dataclass(frozen=True)
class TrainedCohort:
    """The results of the client batches that trained in a round."""

    results: Sequence[tuple[Train, TrainingReport]]
    num_train: Ints
    """(N,): training samples of every client, by which means are weighted."""
    dropped: tuple[int, ...] = ()
    """Clients of the cohort that have no result, because they killed every worker that ran them."""

    @cached_property
    def clients(self) -> Ints:
        """(K,), ascending."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(task.clients for task, _ in self.results)]))

    @cached_property
    def accepted(self) -> NDArray[np.bool_]:
        """(K,): whose result was finite and in range."""
        return self._in_order(lambda _, report: report.accepted).astype(np.bool_)

    @cached_property
    def sent(self) -> NDArray[np.bool_]:
        """(K,): whether a client sent its update, that is, did not drop out."""
        return self._in_order(lambda task, _: task.reports).astype(np.bool_)

    @cached_property
    def reported(self) -> NDArray[np.bool_]:
        """(K,): whose update is in the mean: it was sent and accepted."""
        return self.accepted & self.sent

    @property
    def traffic(self) -> NDArray[np.float64]:
        """(K, 2): how many numbers each was sent and sends, of a method that says so."""
        return self._in_order(lambda _, report: np.empty(0) if report.traffic is None else report.traffic).astype(float)

    @property
    def rejected(self) -> list[int]:
        return self.clients[~self.accepted].tolist()

    def mean(self, of: Of, among: NDArray[np.bool_] | None = None) -> float:
        """The mean of a per-client value over the clients that reported, weighted by their training samples.

        ``among`` (K,): over these only, at least one of which reported.
        """
        chosen = self.reported if among is None else self.reported & among
        weights = self.num_train[self.clients][chosen]
        return float((self._in_order(of).astype(np.float64)[chosen] * weights).sum() / weights.sum())

    def metrics(self) -> dict[str, float]:
        """``train/...`` as the algorithm reports it, and ``cohort/...``."""
        result = {
            "cohort/size": float(len(self.clients) + len(self.dropped)),
            "cohort/reported": float(self.reported.sum()),
            "cohort/rejected": float((~self.accepted).sum()),
            "cohort/dropped": float(len(self.dropped)),
        }
        for name in dict.fromkeys(name for _, report in self.results for name in report.metrics):
            # A straggler may not get to the steps that report it: it has no value then, not 0.
            has_it = self._in_order(_entry(lambda report: report.metric_samples, name)).astype(np.float64) > 0
            if (self.reported & has_it).any():
                result[f"train/{name}"] = self.mean(_entry(lambda report: report.metrics, name), has_it)
        return result

    def squared_updates(self, weighting: str) -> dict[str, float]:
        """The mean squared norm of the clients' updates, per type of layer, weighted as the updates are."""
        kinds = self.results[0][1].squared_updates
        cohort = self if weighting == "samples" else TrainedCohort(self.results, np.ones_like(self.num_train))
        return {kind: cohort.mean(_entry(lambda report: report.squared_updates, kind)) for kind in kinds}

    def _in_order(self, of: Of) -> NDArray[np.generic]:
        if not self.results:
            return np.empty(0)
        clients = np.concatenate([task.clients for task, _ in self.results])
        return np.concatenate([of(task, report) for task, report in self.results])[np.argsort(clients)]


def _entry(values: Callable[[TrainingReport], dict[str, NDArray[np.float64]]], name: str) -> Of:
    """One of the per-client values of a report; 0 for the clients of a batch that does not have it."""
    return lambda task, report: values(report).get(name, np.zeros(len(task.clients)))
