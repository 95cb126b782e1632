"""Every ``auto`` of ``resources:``, resolved once, before round 0.

``resources.num_actors``, ``num_gpus_per_actor``, ``device`` and ``concurrent_runs`` follow from what the cluster has
(``resolve_resources``); ``clients_per_batch`` on a CPU from the configuration alone, on a GPU from a trial step
(``gpu_trial.py``). ``experiments/preparation.py`` and ``experiments/launch.py`` call these and write what comes out into the
run's configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysim.config.schema import Config
from raysim.config.sections.running import ResourcesConfig
from raysim.errors import ConfigError
from raysim.training.step_memory import MOST_ACTORS_PER_GPU
from raysim.workers.cluster import autoscales, check_gpus, check_room, nodes, room

# Multiply-adds of one forward step above which vectorising over clients no longer pays on a CPU. Between a ViT of dim 64
# with batches of 32 x 17 tokens (60 million: 3 % faster with 2 clients) and one of dim 192 with 20 x 65 (2.3 billion:
# 5 % slower).
LARGE_STEP = 300e6
MAX_CLIENTS_PER_BATCH = 64
LEAST_BATCHES = 8  # per round, which ``batches_per_round: auto`` leaves
CUDA_ENVIRONMENT = {"env_vars": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}}  # deterministic matrix products


def clients_per_batch(config: Config, num_parameters: int, tokens: int) -> int:
    """Resolve ``auto`` for a model with this many parameters and tokens per image, from the configuration alone.

    If the cohort is large enough, at least eight batches per round, or ``batches_per_round``; cohorts of four or more train
    at least in pairs unless that is given.
    """
    asked = config.resources.clients_per_batch
    if asked != "auto":
        return asked
    cohort = config.cohort_size
    if cohort < 4 or config.train.batch_size * tokens * num_parameters > LARGE_STEP:
        return 1
    batches = config.resources.batches_per_round
    least, batches = (2, LEAST_BATCHES) if batches == "auto" else (1, batches)
    return min(MAX_CLIENTS_PER_BATCH, max(least, cohort // batches))


def batches_on_gpus(resources: ResourcesConfig, runs: int = 1) -> int:
    """Client batches per round that give every actor on the cluster's GPUs one, before it is known how many share a GPU.

    The runs of a study share the GPUs, and larger batches are faster.
    """
    if resources.batches_per_round != "auto":
        return resources.batches_per_round
    if resources.num_actors != "auto":
        return max(LEAST_BATCHES, resources.num_actors)
    at_a_time = runs if resources.concurrent_runs == "auto" else min(runs, resources.concurrent_runs)
    actors = room(resources, "cuda", resources.num_gpus_per_actor, MOST_ACTORS_PER_GPU)
    return max(LEAST_BATCHES, -(-actors // at_a_time))


def with_clients_per_batch(config: Config, size: int) -> Config:
    """The configuration with this number written into it."""
    resources = config.resources.model_copy(update={"clients_per_batch": size})
    return config.model_copy(update={"resources": resources})


@dataclass(frozen=True)
class Placement:
    """What the driver starts: how many actors, and with which Ray options."""

    resources: ResourcesConfig
    """With nothing left ``auto`` but ``clients_per_batch``."""
    actor_options: dict[str, Any]
    most_batches: int
    actors_per_gpu: int


def resolve_resources(
    resources: ResourcesConfig, most_batches: int, actors_per_gpu: int = 1, patient: bool = False, runs: int = 1
) -> Placement:
    """Resolve ``auto`` against the cluster; ``most_batches`` is the largest number of tasks in a round.

    ``patient``: the resources were there before, so a missing node may come back. ``runs``: how many the study has.

    Raises:
        ConfigError: the cluster can't satisfy what is asked, and starts no nodes by itself; says what was asked and what
            exists.
    """
    gpus = [int(have.get("GPU", 0.0)) for have in nodes()]
    device = resources.device if resources.device != "auto" else ("cuda" if any(gpus) else "cpu")
    have = room(resources, device, resources.num_gpus_per_actor, actors_per_gpu)
    actors: int = max(1, min(have, most_batches)) if resources.num_actors == "auto" else resources.num_actors
    at_a_time = _concurrent_runs(resources, device, actors, have, runs)
    if resources.num_actors == "auto":
        actors = max(1, min(actors, have // at_a_time))
    if resources.num_gpus_per_actor != "auto":
        share: float = resources.num_gpus_per_actor
    elif device == "cpu":
        share = 0.0
    else:
        share = _even_share(actors * at_a_time, sum(gpus))
        if resources.num_actors == "auto":  # nodes with few CPUs leave parts of their GPUs empty
            while actors > 1 and room(resources, device, share, 1) < actors * at_a_time:
                actors -= 1
                share = _even_share(actors * at_a_time, sum(gpus))
    have = room(resources, device, share, 1)
    if at_a_time > 1 and have < at_a_time * actors and not patient and not autoscales():
        raise ConfigError(
            f"resources.concurrent_runs: {at_a_time} runs with {actors} actors each, there is room for {have} actors"
        )
    check_gpus(resources, device, share)
    if not patient and not autoscales():
        check_room(resources, device, actors, share)
    resolved = resources.model_copy(
        update={"device": device, "num_actors": actors, "num_gpus_per_actor": share, "concurrent_runs": at_a_time}
    )
    # Spread: several processes on one node share its memory bandwidth, and its loss.
    options: dict[str, Any] = {
        "num_cpus": resources.num_cpus_per_actor,
        "num_gpus": share,
        "scheduling_strategy": "SPREAD",
    }
    if device == "cuda":
        options["runtime_env"] = CUDA_ENVIRONMENT
    return Placement(resolved, options, most_batches, actors_per_gpu)


def _even_share(actors: int, gpus: int) -> float:
    """The share of a GPU with which so many actors fit on all of them, the same number on each."""
    return int(1e4 / -(-actors // gpus)) / 1e4 if gpus else 1.0


def _concurrent_runs(resources: ResourcesConfig, device: str, actors: int, have: int, runs: int) -> int:
    """How many of the runs of a study are under way at a time."""
    if resources.concurrent_runs != "auto":
        fit = max(1, have) if resources.num_actors == "auto" else runs
        return min(resources.concurrent_runs, runs, fit)
    return min(max(1, have // actors), runs) if resources.num_actors == "auto" else 1


def same_resources(configs: Sequence[Config]) -> ResourcesConfig:
    """The resources that all runs of a study share; they may differ in ``clients_per_batch`` only.

    Raises:
        ConfigError: they differ in something else.
    """
    first = configs[0].resources
    for config in configs:
        if config.resources.model_copy(update={"clients_per_batch": first.clients_per_batch}) != first:
            raise ConfigError(
                f"study: {config.name!r} has other resources than {configs[0].name!r}; the runs of a study share one pool "
                "of actors and may differ in resources.clients_per_batch only"
            )
    return first
