"""Which clients train in a round, which of those report, and which clients are evaluated; drawn from the seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config.schema import Config

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
