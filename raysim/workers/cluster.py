"""The Ray cluster: connecting to it or starting a local one, what its nodes have, and how many actors fit."""

from __future__ import annotations

import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from raysim.config.sections.running import ResourcesConfig
from raysim.errors import ConfigError
from raysim.workers.ray_private import autoscaler_report, be_quiet_about_authentication, most_of_cluster

MOST_SOCKET = 103  # letters of a socket's path, on macOS; Linux has room for 107
SOCKET_LENGTH = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
STATIC_NODE = re.compile(r"node_[0-9a-f]{56}")


def usable_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_lock = threading.Lock()
_users = 0  # threads that are using the cluster that raysim started or looks at


@contextmanager
def using_ray(start: Callable[[], tuple[bool, str | None]]) -> Iterator[str | None]:
    """Use the cluster that this process is connected to, or ``start``; yields a warning of it.

    Several threads may do so at a time: what ``start`` says is to be shut down is, when the last of them is done.
    """
    global _users
    with _lock:
        ours, warning = _users > 0, None
        if not ray.is_initialized():
            ours, warning = start()
        _users += ours
    try:
        yield warning
    finally:
        with _lock:
            _users -= ours
            if ours and not _users:
                ray.shutdown()


def logical_cpus(resources: ResourcesConfig) -> int:
    """How many CPUs a local cluster is given: as many as there are, or as the actors ask for if that is more."""
    actors = 1 if resources.num_actors == "auto" else resources.num_actors
    return max(usable_cpus(), math.ceil(actors * resources.num_cpus_per_actor))


def connect(resources: ResourcesConfig) -> tuple[bool, str | None]:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one.

    Returns whether a local cluster was started, and a warning if it was given more logical CPUs than there are, or another
    folder than usual.
    """
    be_quiet_about_authentication()
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
        return False, None
    cpus, warnings = usable_cpus(), []
    actors = 1 if resources.num_actors == "auto" else resources.num_actors
    if actors * resources.num_cpus_per_actor > cpus:
        warnings.append(
            f"resources: {actors} actors with {resources.num_cpus_per_actor:g} CPUs each on a machine with {cpus}; "
            "they will take turns"
        )
    folder = _short_folder()
    if folder is not None:
        warnings.append(f"TMPDIR is too long for the names of Ray's sockets; Ray's files are in {folder}")
    ray.init(
        address="local",
        num_cpus=logical_cpus(resources),
        include_dashboard=False,
        configure_logging=False,
        log_to_driver=True,
        _temp_dir=folder,
    )
    return True, "\n".join(warnings) or None


def _short_folder() -> str | None:
    """Where Ray's files go if the usual folder for temporary ones has too long a name, as Slurm gives; else None."""
    usual = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return f"/tmp/ray-{os.getuid()}" if len(os.fsencode(usual)) + SOCKET_LENGTH > MOST_SOCKET else None


def nodes() -> list[dict[str, float]]:
    """Ray's resources on each live node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def autoscales() -> bool:
    """Whether the cluster may start nodes on demand, so that resources missing now may appear later.

    Ray has no public way to ask. Its newer autoscaler says what it could start; the older one names nodes by the types of its
    configuration, while a cluster without one has a type ``node_<id>`` for each node.
    """
    if most_of_cluster():
        return True
    return any(not STATIC_NODE.fullmatch(name) for name in autoscaler_report().get("active_nodes") or {})


def room(resources: ResourcesConfig, device: str, share: float | str, actors_per_gpu: int) -> int:
    """How many actors fit, counted node by node: an actor is on one node, so the sum of all CPUs does not count."""
    total = 0
    for have in nodes():
        here = int(have.get("CPU", 0.0) / resources.num_cpus_per_actor + 1e-6)
        if device == "cuda":
            here = min(here, _on_gpus(int(have.get("GPU", 0.0)), share, actors_per_gpu))
        total += here
    return total


def _on_gpus(gpus: int, share: float | str, actors_per_gpu: int) -> int:
    """How many actors fit on these GPUs, with a given share of one each, or ``actors_per_gpu`` if the share is open."""
    if isinstance(share, str):
        return gpus * actors_per_gpu
    return int(gpus // share) if share > 1 else gpus * int(1 / share + 1e-6) if share else gpus


def check_room(resources: ResourcesConfig, device: str, actors: int, share: float) -> None:
    """Refuse actors that no node has room for: Ray would wait for them for ever."""
    have_nodes = nodes()
    cpus, gpus = sum(have.get("CPU", 0.0) for have in have_nodes), int(sum(have.get("GPU", 0.0) for have in have_nodes))
    where = "this node has" if len(have_nodes) == 1 else f"the {len(have_nodes)} nodes have"
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
            f"resources: {actors} actors with {each}{resources.num_cpus_per_actor:g} CPUs each do not fit on "
            f"{len(have_nodes)} nodes with {gpus} GPUs and {cpus:g} CPUs, which have room for {have}. Lower "
            "resources.num_actors or an actor's share"
        )


def check_gpus(resources: ResourcesConfig, device: str, share: float) -> None:
    """Refuse a device and a share of a GPU that contradict each other or the cluster."""
    where = "resources.num_gpus_per_actor"
    gpus = any(have.get("GPU") for have in nodes())
    if device == "cuda" and not gpus and not autoscales():
        raise ConfigError("resources.device: 'cuda' is asked for, but Ray sees no GPU")
    if device == "cuda" and not gpus and (resources.num_actors == "auto" or resources.num_gpus_per_actor == "auto"):
        raise ConfigError(
            "resources: the cluster has no GPU yet; set num_actors and num_gpus_per_actor, so that it knows what to start"
        )
    if device == "cpu" and resources.precision == "tf32":
        raise ConfigError(
            "resources.precision: 'tf32' is a way in which GPUs multiply; on a CPU take float32 or bfloat16"
        )
    if device == "cpu" and share and gpus:
        raise ConfigError(f"{where}: {share:g} asked with device 'cpu', which uses no GPU")
    if device == "cuda" and not share:
        raise ConfigError(f"{where}: 0 asked with device 'cuda'")
    if share > 1 and share != int(share):
        raise ConfigError(f"{where}: {share:g} is not possible: a share above 1 must be a whole number of GPUs")
