"""Rounds of raysim and of the plain loop, alternating in one invocation: their seconds, memory and bytes."""

from __future__ import annotations

import logging
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from raysim import __version__
from raysim.bench.plain import PlainLoop, check_is_plain
from raysim.bench.workloads import Workload
from raysim.config.schema import Config
from raysim.config.loading import config_of
from raysim.errors import ConfigError
from raysim.tracking.journal import Outbox, RunJournal
from raysim.experiments.keeper import Keeper
from raysim.workers.node_states import StateNodes
from raysim.experiments.preparation import Launch, Prepared, prepare_on
from raysim.workers.resources import connect, usable_cpus
from raysim.federation.rounds import Run
from raysim.storage.folder import Folder
from raysim.tracking.mlflow_store import Tracker, checkpoint_root, resolve_uri

log = logging.getLogger(__name__)


@ray.remote(max_restarts=0)
class SteppedDriver:
    """What ``raysim.study`` does for one run, MLflow and checkpoints included, but one round for each call."""

    def __init__(self, prepared: list[ray.ObjectRef], uri: str, import_path: tuple[str, ...]) -> None:
        torch.set_num_threads(1)
        run: Prepared = ray.get(prepared[0])
        stop = threading.Event()
        launch = Launch(run.config, list(import_path), uri, stop, log.warning)
        self.config, (spec,), (self._pool,) = launch.specs([run])
        config = spec.config
        self._states = StateNodes(spec.state_size)
        self._pool.configure(spec.setup, self._states)
        self._tracker, outbox = Tracker(uri, config.name), Outbox(log.warning, stop)
        self._journal = RunJournal(self._tracker, outbox, self._tracker.start(config.name, {}, {}), None, resumed=False)
        self._run = Run(spec.setup, spec.layout, self._pool, self._states, lambda _: None)
        self._keeper: Keeper | None = None
        if config.checkpoint.every is not None:
            folder = Folder(checkpoint_root(config.checkpoint, uri))
            self._keeper = Keeper(self._run, folder, config.name, {}, None, log.warning)

    def resolved(self) -> Config:
        """The configuration with nothing left ``auto``."""
        return self.config

    def pids(self) -> list[int]:
        """The driver's process and those of its client actors."""
        return [psutil.Process().pid, *(int(machine["pid"]) for machine in self._pool.machines)]

    def round(self, round: int) -> list[tuple[int, dict[str, float]]]:
        """One round; returns the metrics of those that are complete with it."""
        assert round == self._run.next_round
        done = self._run.round()
        for record in done:
            self._journal.add(record)
        if self._keeper is not None:
            self._keeper.after_a_round()
        return [(record.round, record.metrics) for record in done]

    def close(self) -> None:
        """Delete what lies in temporary folders."""
        if self._keeper is not None:
            self._keeper.writer.close()
        self._states.close()

    def shared(self) -> NDArray[np.float32]:
        """(S,): the shared parameters after the rounds so far."""
        array: NDArray[np.float32] = self._run.shared.numpy()
        return array

    def num_states(self) -> int:
        """How many clients have a personal state by now."""
        return self._run.num_states


@dataclass
class Memory:
    """Private memory of groups of processes in MB after each round; client actors still hold most of what they used in it."""

    groups: dict[str, list[int]]
    peak: dict[str, float] = field(default_factory=dict)

    def look(self) -> float:
        """All groups together."""
        now = {name: sum(private_mb(pid) for pid in pids) for name, pids in self.groups.items()}
        self.peak = {name: max(value, self.peak.get(name, 0.0)) for name, value in now.items()}
        return sum(now.values())


def private_mb(pid: int) -> float:
    """What a process alone occupies, without memory that it shares (the object store, libraries)."""
    return float(psutil.Process(pid).memory_full_info().uss) / 1e6


def object_store_bytes() -> int:
    """Bytes that were ever put into the object stores of the cluster, by whomever."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    here = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    return int(get_memory_info_reply(get_state_from_address(here)).store_stats.cumulative_created_bytes)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": usable_cpus(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_at_start": round(psutil.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": {
            "raysim": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ray": ray.__version__,
        },
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


@contextmanager
def driven(workload: Workload, overrides: Sequence[str], rounds: int) -> Iterator[Driven]:
    """A workload ready for its first round, with a store of its own that is deleted afterwards.

    Raises:
        ConfigError: an override is wrong, or the cluster can't give what it asks for.
    """
    with tempfile.TemporaryDirectory(prefix="raysim-bench-") as folder:
        store = f"tracking.uri=sqlite:///{folder}/mlflow.db"
        config = config_of(workload.raw, [store, *overrides, f"rounds={rounds}"], f"bench {workload.name}")

        def prepare() -> Prepared:
            return prepare_on(workload.name, config, workload.dataset(), workload.partition(config.data.num_clients))

        with ThreadPoolExecutor(1) as thread:  # while Ray starts, which is mostly waiting
            preparing = thread.submit(prepare)
            started, _ = connect(config.resources)
        try:
            run = preparing.result()
            actor_class: Any = SteppedDriver
            uri = resolve_uri(config.tracking)
            import_path = (os.getcwd(), *(entry for entry in sys.path if entry))
            actor = actor_class.options(num_cpus=0).remote([ray.put(run)], uri, import_path)
            try:
                resolved = ray.get(actor.resolved.remote())  # all actors are configured
                yield Driven(resolved, run, actor)
                ray.get(actor.close.remote())
            except RayTaskError as error:
                if isinstance(error.cause, ConfigError):
                    raise error.cause from error
                raise
            finally:
                ray.kill(actor)
        finally:
            if started:
                ray.shutdown()


@dataclass(frozen=True)
class Driven:
    """A ``SteppedDriver`` with what it was started from."""

    config: Config
    """As the run has it, nothing left ``auto``."""
    run: Prepared
    actor: Any

    def round(self, round: int) -> tuple[float, list[dict[str, float]]]:
        """Seconds that a round took, and the metrics of the rounds that are complete with it."""
        begin = perf_counter()
        done = ray.get(self.actor.round.remote(round))
        return perf_counter() - begin, [metrics for _, metrics in done]

    def processes(self) -> dict[str, list[int]]:
        pids = ray.get(self.actor.pids.remote())
        return {"driver": pids[:1], "actors": pids[1:]}


def against_plain_torch(workload: Workload, rounds: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Both sides for ``rounds`` rounds after one to warm up; which of them is first changes from round to round.

    Raises:
        ConfigError: the plain loop can't do what is asked, an override is wrong, or the resources are not there.
    """
    check_is_plain(config_of(workload.raw, overrides, f"bench {workload.name}"))
    facts = machine()
    plain: list[float] = []
    ours: list[float] = []
    metrics: list[dict[str, float]] = []
    stored: list[int] = []
    with driven(workload, overrides, rounds + 2) as raysim:  # the last round, which evaluates everyone, is not run
        config, run, actors = raysim.config, raysim.run, raysim.config.resources.num_actors
        assert isinstance(actors, int)
        shared, personal = run.layout.split(torch.from_numpy(run.initial))
        with PlainLoop(config, run.dataset, run.partition, shared, personal, actors) as loop:
            memory = Memory({**raysim.processes(), "plain": loop.pids})
            for round in range(rounds + 1):
                for side in ("plain", "raysim") if round % 2 else ("raysim", "plain"):
                    before, begin = object_store_bytes(), perf_counter()
                    if side == "plain":
                        loop.round(round)
                        plain.append(perf_counter() - begin)
                    else:
                        seconds, done = raysim.round(round)
                        ours.append(seconds)
                        metrics += done
                        stored.append(object_store_bytes() - before)
                memory.look()
            difference = np.abs(ray.get(raysim.actor.shared.remote()) - loop.shared.numpy()).max(initial=0.0)
    plain, ours, metrics, stored = plain[1:], ours[1:], metrics[1:], stored[1:]
    busy = float(np.median([row["system/actor_busy_fraction"] for row in metrics]))
    seconds = float(np.median(ours))
    return {
        **_described(workload, config),
        "plain_seconds_per_round": float(np.median(plain)),
        "raysim_seconds_per_round": seconds,
        "ratio": float(np.median(np.array(ours) / np.array(plain))),
        "overhead_ms_per_client": 1000 * (1 - busy) * seconds * actors / config.cohort_size,
        "largest_difference": float(difference),
        "actor_busy_fraction": busy,
        "padding_fraction": float(np.median([row["system/padding_fraction"] for row in metrics])),
        "peak_private_mb": memory.peak["driver"] + memory.peak["actors"],
        "peak_private_mb_driver": memory.peak["driver"],
        "peak_private_mb_actors": memory.peak["actors"],
        "plain_peak_private_mb": memory.peak["plain"],
        "object_store_bytes_per_round": float(np.median(stored)),
        "plain_seconds": plain,
        "raysim_seconds": ours,
        "machine": facts,
    }


FEW_CLIENTS = 2_000
SETTLED = 5  # from this round on memory is expected to stay


def many_clients(workload: Workload, rounds: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """All clients of the workload beside ``FEW_CLIENTS``, in turn, each with actors of its own.

    Raises:
        ConfigError: an override is wrong, or the resources are not there.
    """
    if rounds <= SETTLED:
        raise ConfigError(f"--rounds: memory is compared with that of round {SETTLED}, so take at least {SETTLED + 1}")
    facts = machine()
    begun = psutil.Process().create_time()
    all_seconds: list[float] = []
    few_seconds: list[float] = []
    history: list[float] = []
    overrides = [*overrides, *_half_of_each(overrides)]
    with driven(workload, overrides, rounds) as everyone:
        ready = time.time() - begun
        all_seconds.append(everyone.round(0)[0])
        first = time.time() - begun
        memory = Memory(everyone.processes())
        few_clients = [f"data.num_clients={FEW_CLIENTS}"]
        with driven(workload, [*overrides, *few_clients], rounds) as few:
            few.round(0)
            for round in range(1, rounds):
                for side in ("few", "all") if round % 2 else ("all", "few"):
                    if side == "few":
                        few_seconds.append(few.round(round)[0])
                    else:
                        all_seconds.append(everyone.round(round)[0])
                        history.append(memory.look())
        states = ray.get(everyone.actor.num_states.remote())
    ratios = np.array(all_seconds[1:]) / np.array(few_seconds)
    config = everyone.config
    return {
        **_described(workload, config),
        "num_clients": config.data.num_clients,
        "clients_with_state": states,
        "state_bytes_per_client": 4 * everyone.run.layout.num_personal,
        "raysim_seconds_per_round": float(np.median(all_seconds[1:])),
        "few_clients": FEW_CLIENTS,
        "few_clients_seconds_per_round": float(np.median(few_seconds)),
        "ratio": float(np.median(ratios)),
        "seconds_to_start": ready,
        "seconds_to_first_round": first,
        "peak_private_mb": memory.peak["driver"] + memory.peak["actors"],
        "private_mb_growth": history[-1] - history[SETTLED - 1],
        "private_mb": history,
        "raysim_seconds": all_seconds,
        "machine": facts,
    }


def _half_of_each(overrides: Sequence[str]) -> list[str]:
    """Two pools of actors at once: each has half of every CPU; only one of the two works at a time.

    Raises:
        ConfigError: a GPU is asked for, which the two pools could not share.
    """
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    if given.get("resources.device", "auto") not in ("auto", "cpu"):
        raise ConfigError("--device: bench clients is about memory and the driver's work, and runs on CPUs only")
    actors = given.get("resources.num_actors", "auto")
    actors = str(usable_cpus()) if actors == "auto" else actors
    return [f"resources.num_actors={actors}", "resources.num_cpus_per_actor=0.5", "resources.device=cpu"]


def _described(workload: Workload, config: Config) -> dict[str, Any]:
    resources = config.resources
    return {
        "workload": workload.name,
        "algorithm": config.algorithm.model_dump(mode="json"),
        "device": resources.device,
        "actors": resources.num_actors,
        "rounds": config.rounds,
        "cohort": config.cohort_size,
        "clients_per_batch": resources.clients_per_batch,
    }
