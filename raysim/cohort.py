"""Which clients train and are evaluated in a round, and what a trained cohort reports, reduced in client-id order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config import Config
from raysim.tasks import TaskResult

Ints = NDArray[np.int64]


def sample_cohort(config: Config, round: int) -> Ints:
    """The ids of the clients that train in a round, ascending."""
    if config.cohort.schedule is not None:
        return np.sort(np.array(config.cohort.schedule[round], np.int64))
    rng = seeds.stream(config.seed, "cohort", round)
    return np.sort(rng.choice(config.data.num_clients, config.cohort_size, replace=False))


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
    """The results of all client batches of a round."""

    results: Sequence[TaskResult]
    num_train: Ints
    """(N,): training samples of every client, by which means are weighted."""

    @cached_property
    def clients(self) -> Ints:
        """(K,), ascending."""
        return np.sort(np.concatenate([result.task.clients for result in self.results]))

    @cached_property
    def accepted(self) -> NDArray[np.bool_]:
        """(K,): whose result was finite and in range."""
        return self._in_order(lambda result: np.asarray(result.accepted)).astype(np.bool_)

    @property
    def rejected(self) -> list[int]:
        return self.clients[~self.accepted].tolist()

    def mean(self, of: Callable[[TaskResult], NDArray[np.generic]]) -> float:
        """The mean over the training samples of accepted clients of what each result has per client (K,)."""
        accepted = self.accepted
        weights = self.num_train[self.clients][accepted]
        return float((self._in_order(of).astype(np.float64)[accepted] * weights).sum() / weights.sum())

    def metrics(self) -> dict[str, float]:
        """``train/...`` as the algorithm reports it, and ``cohort/...``."""
        accepted = self.accepted
        result = {"cohort/size": float(len(accepted)), "cohort/rejected": float((~accepted).sum())}
        for name in self.results[0].metrics if accepted.any() else ():
            result[f"train/{name}"] = self.mean(lambda r, name=name: r.metrics[name])  # type: ignore[misc]
        return result

    def squared_updates(self, weighting: str) -> dict[str, float]:
        """The mean squared norm of the clients' updates, per type of layer, weighted as the updates are."""
        kinds = self.results[0].squared_updates
        cohort = self if weighting == "samples" else TrainedCohort(self.results, np.ones_like(self.num_train))
        return {kind: cohort.mean(lambda r, kind=kind: r.squared_updates[kind]) for kind in kinds}  # type: ignore[misc]

    def _in_order(self, of: Callable[[TaskResult], NDArray[np.generic]]) -> NDArray[np.generic]:
        clients = np.concatenate([result.task.clients for result in self.results])
        return np.concatenate([of(result) for result in self.results])[np.argsort(clients)]
