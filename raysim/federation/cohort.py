"""Which clients train and are evaluated in a round, and what a trained cohort reports, reduced in client-id order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config.schema import Config
from raysim.training.tasks import TaskResult

Ints = NDArray[np.int64]


def sample_cohort(config: Config, round: int) -> Ints:
    """The ids of the clients that train in a round, ascending."""
    if config.cohort.schedule is not None:
        return np.sort(np.array(config.cohort.schedule[round], np.int64))
    rng = seeds.stream(config.seed, "cohort", round)
    return np.sort(rng.choice(config.data.num_clients, config.cohort_size, replace=False))


def participation(config: Config, round: int, cohort: Ints) -> tuple[NDArray[np.bool_], NDArray[np.float64] | None]:
    """Who of a cohort (K,) reports to the server, and which share of its local steps each does (None: all of them)."""
    reports = np.ones(len(cohort), np.bool_)
    if config.cohort.dropout:
        rng = seeds.stream(config.seed, "reports", round)
        reports = rng.random(len(cohort)) >= config.cohort.dropout
    if not config.cohort.stragglers:
        return reports, None
    rng = seeds.stream(config.seed, "stragglers", round)
    slow = rng.random(len(cohort)) < config.cohort.stragglers
    return reports, np.where(slow, rng.random(len(cohort)), 1.0)


def evaluated_clients(config: Config, cohort: Ints) -> Ints:
    """The ids of the clients that are evaluated in a round, ascending."""
    if config.evaluate.clients == "cohort":
        return cohort
    everyone = np.arange(config.data.num_clients)
    if config.evaluate.clients == "all":
        return everyone
    rng = seeds.stream(config.seed, "evaluate")  # the same sample in every round, so that rounds can be compared
    return np.sort(rng.choice(everyone, config.evaluate.clients, replace=False))


@dataclass(frozen=True)
class TrainedCohort:
    """The results of the client batches of a round."""

    results: Sequence[TaskResult]
    num_train: Ints
    """(N,): training samples of every client, by which means are weighted."""
    dropped: tuple[int, ...] = ()
    """Clients of the cohort that have no result, because they killed every worker that ran them."""

    @cached_property
    def clients(self) -> Ints:
        """(K,), ascending."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(result.task.clients for result in self.results)]))

    @cached_property
    def accepted(self) -> NDArray[np.bool_]:
        """(K,): whose result was finite and in range."""
        return self._in_order(lambda result: np.asarray(result.accepted)).astype(np.bool_)

    @cached_property
    def sent(self) -> NDArray[np.bool_]:
        """(K,): who did not drop out before it reported."""
        return self._in_order(lambda result: np.asarray(result.task.reports)).astype(np.bool_)

    @cached_property
    def reported(self) -> NDArray[np.bool_]:
        """(K,): whose update is in the mean: it was sent and accepted."""
        return self.accepted & self.sent

    @property
    def rejected(self) -> list[int]:
        return self.clients[~self.accepted].tolist()

    def mean(self, of: Callable[[TaskResult], NDArray[np.generic]]) -> float:
        """The mean over the training samples of clients that reported of what each result has per client (K,)."""
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
        for name in self.results[0].metrics if self.reported.any() else ():
            result[f"train/{name}"] = self.mean(lambda r, name=name: r.metrics[name])  # type: ignore[misc]
        return result

    def squared_updates(self, weighting: str) -> dict[str, float]:
        """The mean squared norm of the clients' updates, per type of layer, weighted as the updates are."""
        kinds = self.results[0].squared_updates
        cohort = self if weighting == "samples" else TrainedCohort(self.results, np.ones_like(self.num_train))
        return {kind: cohort.mean(lambda r, kind=kind: r.squared_updates[kind]) for kind in kinds}  # type: ignore[misc]

    def _in_order(self, of: Callable[[TaskResult], NDArray[np.generic]]) -> NDArray[np.generic]:
        if not self.results:
            return np.empty(0)
        clients = np.concatenate([result.task.clients for result in self.results])
        return np.concatenate([of(result) for result in self.results])[np.argsort(clients)]
