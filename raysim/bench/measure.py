"""Rounds of raysim and of the plain loop, alternating in one invocation: their seconds, memory and bytes."""

from __future__ import annotations

import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

from raysim import __version__
from raysim.bench.plain import PlainLoop, check_is_plain
from raysim.bench.workloads import Workload
from raysim.config import Config
from raysim.driver import Job
from raysim.experiment import Prepared, prepare_on, start
from raysim.resources import connect, usable_cpus
from raysim.rounds import Run
from raysim.scheduling import ActorPool
from raysim.tracking import Tracker

SAMPLE_SECONDS = 0.5  # between two looks at the processes' memory


@ray.remote(max_restarts=0)
class SteppedDriver:
    """What ``raysim.driver.Driver`` does for one run, MLflow included, but one round for each call."""

    def __init__(
        self, job: list[ray.ObjectRef], num_actors: int, actor_options: dict[str, Any], import_path: list[str]
    ) -> None:
        torch.set_num_threads(1)
        prepared: Job = ray.get(job[0])
        spec = prepared.runs[0]
        self._folder = tempfile.TemporaryDirectory(prefix="raysim-bench-")
        setup = replace(spec.setup, slot_file=Path(self._folder.name) / "personal_state")
        self._pool = ActorPool(num_actors, actor_options, import_path, threading.Event())
        self._tracker = Tracker(prepared.tracking_uri, prepared.experiment)
        self._pool.configure(setup, lambda _: None)
        self._run_id = self._tracker.start(spec.config.name, {}, {})
        self._run = Run(setup, spec.layout, self._pool, spec.domains, lambda _: None)

    def pids(self) -> list[int]:
        """The driver's process and those of its client actors."""
        return [psutil.Process().pid, *(int(machine["pid"]) for machine in self._pool.machines)]

    def round(self, round: int) -> list[tuple[int, dict[str, float]]]:
        """One round; returns the metrics of those that are complete with it."""
        done = self._run.round(round)
        for which, metrics in done:
            self._tracker.log_round(self._run_id, which, metrics)
        return done

    def num_states(self) -> int:
        """How many clients have a personal state by now."""
        return self._run.num_states


@dataclass
class Memory:
    """Private memory of groups of processes in MB, looked at again and again by a thread."""

    groups: dict[str, list[int]]
    peak: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> dict[str, float]:
        now = {name: sum(private_mb(pid) for pid in pids) for name, pids in self.groups.items()}
        self.peak = {name: max(value, self.peak.get(name, 0.0)) for name, value in now.items()}
        return now

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.look()

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def private_mb(pid: int) -> float:
    """What a process alone occupies, without memory that it shares (the object store, libraries)."""
    return float(psutil.Process(pid).memory_full_info().uss) / 1e6


def object_store_bytes() -> int:
    """Bytes that were ever put into the object stores of the cluster, by whomever."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    return int(get_memory_info_reply(get_state_from_address()).store_stats.cumulative_created_bytes)


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


def compare(workload: Workload, algorithm: dict[str, Any], rounds: int, resources: dict[str, Any]) -> dict[str, Any]:
    """Both sides for ``rounds`` rounds after one to warm up; which of them is first changes from round to round.

    Raises:
        ConfigError: the algorithm is not one that the plain loop can do, or the resources are not there.
    """
    machine_now = machine()
    with tempfile.TemporaryDirectory(prefix="raysim-bench-") as folder:
        config, run = _prepared(workload, algorithm, rounds + 1, resources, folder)
        check_is_plain(config.algorithm)
        started, _ = connect(config.resources)
        try:
            driver, job = start(SteppedDriver, config, [run])
            actors = job.runs[0].config.resources.num_actors
            assert isinstance(actors, int)
            shared, personal = run.layout.split(torch.from_numpy(run.initial))
            with PlainLoop(job.runs[0].config, run.dataset, run.partition, shared, personal, actors) as loop:
                plain, ours, metrics, memory, stored = _alternate(driver, loop, rounds)
        finally:
            if started:
                ray.shutdown()
    cohort = workload.cohort
    busy = float(np.median([row["system/actor_busy_fraction"] for row in metrics]))
    seconds = float(np.median(ours))
    return {
        "workload": workload.name,
        "algorithm": algorithm,
        "device": job.runs[0].config.resources.device,
        "actors": actors,
        "rounds": rounds,
        "cohort": cohort,
        "clients_per_batch": job.runs[0].config.resources.clients_per_batch,
        "plain_seconds_per_round": float(np.median(plain)),
        "raysim_seconds_per_round": seconds,
        "ratio": float(np.median(np.array(ours) / np.array(plain))),
        "overhead_ms_per_client": 1000 * (1 - busy) * seconds * actors / cohort,
        "actor_busy_fraction": busy,
        "peak_private_mb": memory.peak["driver"] + memory.peak["actors"],
        "peak_private_mb_driver": memory.peak["driver"],
        "peak_private_mb_actors": memory.peak["actors"],
        "plain_peak_private_mb": memory.peak["plain"],
        "object_store_bytes_per_round": float(np.median(stored)),
        "plain_seconds": plain,
        "raysim_seconds": ours,
        "machine": machine_now,
    }


def _alternate(
    driver: Any, loop: PlainLoop, rounds: int
) -> tuple[list[float], list[float], list[dict[str, float]], Memory, list[int]]:
    from time import perf_counter

    pids = ray.get(driver.pids.remote())
    memory = Memory({"driver": pids[:1], "actors": pids[1:], "plain": loop.pids})
    plain, ours, metrics, stored = [], [], [], []
    with memory.watched():
        for round in range(rounds + 1):
            for side in ("plain", "raysim") if round % 2 else ("raysim", "plain"):
                before, start = object_store_bytes(), perf_counter()
                if side == "plain":
                    loop.round(round)
                    plain.append(perf_counter() - start)
                else:
                    metrics += [row for _, row in ray.get(driver.round.remote(round))]
                    ours.append(perf_counter() - start)
                    stored.append(object_store_bytes() - before)
        memory.look()
    return plain[1:], ours[1:], metrics[1:], memory, stored[1:]  # the first round warms up


def _prepared(
    workload: Workload, algorithm: dict[str, Any], rounds: int, resources: dict[str, Any], folder: str
) -> tuple[Config, Prepared]:
    config = workload.config(algorithm, rounds, resources)
    tracking = config.tracking.model_copy(update={"uri": f"sqlite:///{folder}/mlflow.db"})
    config = config.model_copy(update={"tracking": tracking})
    return config, prepare_on(workload.name, config, workload.dataset(), workload.partition())
