"""Which clients train in a round, which of those report, and which clients are evaluated; drawn from the seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.own_code import own_function

Ints = NDArray[np.int64]


def sample_cohort(config: Config, round: int) -> Ints:
    """The ids of the clients that train in a round, ascending."""
    if config.cohort.schedule is not None:
        return np.sort(np.array(config.cohort.schedule[round], np.int64))
    rng, num_clients, size = seeds.stream(config.seed, "cohort", round), config.data.num_clients, config.cohort_size
    if config.cohort.sampling == "uniform":
        return np.sort(rng.choice(num_clients, size, replace=False))
    own = config.cohort.sampling
    drawn = np.asarray(own_function(own, "cohort.sampling")(round, num_clients, size, rng))
    ids = np.unique(drawn)
    if drawn.shape != (size,) or drawn.dtype.kind not in "iu" or len(ids) != size:
        returned = f"{drawn.dtype} {drawn.shape}" if len(ids) == drawn.size else "a client twice"
        raise ConfigError(
            f"cohort.sampling: {own} returned {returned} for round {round}, not {size} different client ids"
        )
    if ids[0] < 0 or ids[-1] >= num_clients:
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise ConfigError(
            f"cohort.sampling: {own} returned client {wrong} for round {round}; ids go to {num_clients - 1}"
        )
    return ids.astype(np.int64)


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
