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
    def rejected(self) -> list[int]:
        return self.clients[~self.accepted].tolist()

    def mean(self, of: Of) -> float:
        """The mean of a per-client value over the clients that reported, weighted by their training samples."""
        reported = self.reported
        weights = self.num_train[self.clients][reported]
        return float((self._in_order(of).astype(np.float64)[reported] * weights).sum() / weights.sum())

    def metrics(self) -> dict[str, float]:
        """``train/...`` as the algorithm reports it, and ``cohort/...``."""
        result = {
            "cohort/size": float(len(self.clients) + len(self.dropped)),
            "cohort/reported": float(self.reported.sum()),
            "cohort/rejected": float((~self.accepted).sum()),
            "cohort/dropped": float(len(self.dropped)),
        }
        for name in self.results[0][1].metrics if self.reported.any() else ():
            result[f"train/{name}"] = self.mean(lambda _, report, name=name: report.metrics[name])  # type: ignore[misc]
        return result

    def squared_updates(self, weighting: str) -> dict[str, float]:
        """The mean squared norm of the clients' updates, per type of layer, weighted as the updates are."""
        kinds = self.results[0][1].squared_updates
        cohort = self if weighting == "samples" else TrainedCohort(self.results, np.ones_like(self.num_train))
        return {k: cohort.mean(lambda _, report, k=k: report.squared_updates[k]) for k in kinds}  # type: ignore[misc]

    def _in_order(self, of: Of) -> NDArray[np.generic]:
        if not self.results:
            return np.empty(0)
        clients = np.concatenate([task.clients for task, _ in self.results])
        return np.concatenate([of(task, report) for task, report in self.results])[np.argsort(clients)]
