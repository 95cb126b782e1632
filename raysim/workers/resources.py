"""Where a run takes place: the Ray cluster, the actors' share of it, and every ``auto`` of ``resources:``."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get

from raysim.config.schema import Config, ResourcesConfig
from raysim.errors import ConfigError

# Multiply-adds of one forward step above which vectorising over clients no longer pays on a CPU. Between a ViT of dim 64
# with batches of 32 x 17 tokens (60 million: 3 % faster with 2 clients) and one of dim 192 with 20 x 65 (2.3 billion:
# 5 % slower).
LARGE_STEP = 300e6
MAX_CLIENTS_PER_BATCH = 32
STATIC_NODE = re.compile(r"node_[0-9a-f]{56}")
CUDA_ENVIRONMENT = {"env_vars": {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}}  # deterministic matrix products


def usable_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def clients_per_batch(config: Config, num_parameters: int, tokens: int) -> int:
    """``auto`` for a model of so many parameters and tokens per image: a function of the configuration alone.

    At least eight batches per round where the cohort is large enough, and pairs from a cohort of four.
    """
    asked = config.resources.clients_per_batch
    if asked != "auto":
        return asked
    cohort = config.cohort_size
    if cohort < 4 or config.train.batch_size * tokens * num_parameters > LARGE_STEP:
        return 1
    return min(MAX_CLIENTS_PER_BATCH, max(2, cohort // 8))


@dataclass(frozen=True)
class Placement:
    """What the driver starts: so many actors with these Ray options."""

    resources: ResourcesConfig
    """With nothing left ``auto`` but ``clients_per_batch``."""
    actor_options: dict[str, Any]
    most_batches: int
    actors_per_gpu: int


def connect(resources: ResourcesConfig) -> tuple[bool, str | None]:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one; a cluster that is already there is used.

    Returns whether a local cluster was started, and a warning if it was given more logical CPUs than there are.
    """
    if ray.is_initialized():
        return False, None
    # It tells how to switch a protection off.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
        return False, None
    cpus, warning = usable_cpus(), None
    actors = 1 if resources.num_actors == "auto" else resources.num_actors
    asked = actors * resources.num_cpus_per_actor
    if asked > cpus:
        warning = (
            f"resources: {actors} actors with {resources.num_cpus_per_actor:g} CPUs each on a machine with {cpus}; "
            "they will take turns"
        )
    ray.init(
        address="local",
        num_cpus=max(cpus, -int(-asked // 1)),
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=True,
    )
    return True, warning


def _nodes() -> list[dict[str, float]]:
    """What Ray has on each node of the cluster that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def autoscales() -> bool:
    """Whether the cluster may start nodes on demand, so that what is not there now may be there in a while.

    Ray has no public way to ask. Its newer autoscaler says what it could start; the older one names nodes by the types of its
    configuration, while a cluster without one has a type ``node_<id>`` for each node.
    """
    if ray._private.state.state.get_max_resources_from_cluster_config():
        return True
    status = json.loads(_internal_kv_get("__autoscaling_status") or b"{}")
    report = status.get("autoscaler_report") or {}
    return any(not STATIC_NODE.fullmatch(name) for name in report.get("active_nodes") or {})


def room(resources: ResourcesConfig, device: str, share: float | str, actors_per_gpu: int) -> int:
    """How many actors the nodes have room for; an actor is on one node, so it is not the sum of the CPUs that counts."""
    total = 0
    for have in _nodes():
        here = int(have.get("CPU", 0.0) / resources.num_cpus_per_actor + 1e-6)
        if device == "cuda":
            here = min(here, _on_gpus(int(have.get("GPU", 0.0)), share, actors_per_gpu))
        total += here
    return total


def place(
    resources: ResourcesConfig, most_batches: int, actors_per_gpu: int = 1, patient: bool = False, runs: int = 1
) -> Placement:
    """Resolve ``auto`` against the cluster; ``most_batches`` is the largest number of tasks in a round.

    ``patient``: what is asked for was there before, so a node that is missing now may come back. ``runs``: of the study.

    Raises:
        ConfigError: the cluster can't satisfy what is asked, and starts no nodes by itself; says what was asked and what
            exists.
    """
    gpus = [int(have.get("GPU", 0.0)) for have in _nodes()]
    device = resources.device if resources.device != "auto" else ("cuda" if any(gpus) else "cpu")
    have = room(resources, device, resources.num_gpus_per_actor, actors_per_gpu)
    actors: int = max(1, min(have, most_batches)) if resources.num_actors == "auto" else resources.num_actors
    at_a_time = _at_a_time(resources, device, actors, have, runs)
    if resources.num_actors == "auto":
        actors = max(1, min(actors, have // at_a_time))
    elif at_a_time > 1 and have < at_a_time * actors and not patient and not autoscales():
        raise ConfigError(
            f"resources.concurrent_runs: {at_a_time} runs with {actors} actors each, there is room for {have} actors"
        )
    per_gpu = -(-actors * at_a_time // sum(gpus)) if any(gpus) else 1
    even = int(1e4 / per_gpu) / 1e4 if device == "cuda" else 0.0
    share: float = even if resources.num_gpus_per_actor == "auto" else resources.num_gpus_per_actor
    _check_gpus(resources, device, actors, share)
    if not patient and not autoscales():
        _check_room(resources, device, actors, share)
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


def _at_a_time(resources: ResourcesConfig, device: str, actors: int, have: int, runs: int) -> int:
    """How many of the runs of a study are under way at a time."""
    if resources.concurrent_runs != "auto":
        fit = max(1, have) if resources.num_actors == "auto" else runs
        return min(resources.concurrent_runs, runs, fit)
    return min(max(1, have // actors), runs) if device == "cpu" and resources.num_actors == "auto" else 1


def _check_room(resources: ResourcesConfig, device: str, actors: int, share: float) -> None:
    """Ray would wait for ever for what no node has."""
    nodes = _nodes()
    cpus, gpus = sum(have.get("CPU", 0.0) for have in nodes), int(sum(have.get("GPU", 0.0) for have in nodes))
    where = "this node has" if len(nodes) == 1 else f"the {len(nodes)} nodes have"
    if share and not gpus:
        raise ConfigError(f"resources.num_gpus_per_actor: {share:g} asked, {where} 0 GPUs")
    if actors * resources.num_cpus_per_actor > cpus + 1e-6:
        raise ConfigError(
            f"resources: {actors} actors with {resources.num_cpus_per_actor:g} CPUs each need "
            f"{actors * resources.num_cpus_per_actor:g} CPUs, {where} {cpus:g}. Lower resources.num_actors or "
            "resources.num_cpus_per_actor"
        )
    if actors > (have := room(resources, device, share, 1)):
        each = f"{share:g} of a GPU and " if share else ""
        raise ConfigError(
            f"resources: {actors} actors with {each}{resources.num_cpus_per_actor:g} CPUs each do not fit on {len(nodes)} "
            f"nodes with {gpus} GPUs and {cpus:g} CPUs, which have room for {have}. Lower resources.num_actors or an actor's "
            "share"
        )


def _on_gpus(gpus: int, share: float | str, actors_per_gpu: int) -> int:
    """How many actors have room on so many GPUs, each with a given share of one, or so many to each."""
    if isinstance(share, str):
        return gpus * actors_per_gpu
    return int(gpus // share) if share > 1 else gpus * int(1 / share + 1e-6) if share else gpus


def _check_gpus(resources: ResourcesConfig, device: str, actors: int, share: float) -> None:
    where = "resources.num_gpus_per_actor"
    gpus = any(have.get("GPU") for have in _nodes())
    if device == "cuda" and not gpus and not autoscales():
        raise ConfigError("resources.device: 'cuda' is asked for, but Ray sees no GPU")
    if device == "cuda" and not gpus and (resources.num_actors == "auto" or resources.num_gpus_per_actor == "auto"):
        raise ConfigError(
            "resources: the cluster has no GPU yet; set num_actors and num_gpus_per_actor, so that it knows what to start"
        )
    if device == "cpu" and share and gpus:
        raise ConfigError(f"{where}: {share:g} asked with device 'cpu', which uses no GPU")
    if device == "cuda" and not share:
        raise ConfigError(f"{where}: 0 asked with device 'cuda'")
    if share > 1 and share != int(share):
        raise ConfigError(f"{where}: {share:g} is not possible: a share above 1 must be a whole number of GPUs")


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
