"""Rounds of raysim and of the plain loop, alternating in one invocation: their seconds, memory and bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import ray
import torch

from raysim.bench.machine import Memory, machine
from raysim.bench.plain import PlainLoop, check_is_plain
from raysim.bench.stepped_driver import driven
from raysim.bench.workloads import Workload
from raysim.config.loading import config_of
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.workers.cluster import usable_cpus
from raysim.workers.ray_private import object_store_bytes


def against_plain_torch(
    workload: Workload, rounds: int, overrides: Sequence[str] = (), trimmed: bool = False
) -> dict[str, Any]:
    """Measure both sides for ``rounds`` rounds after a warm-up round; they take turns going first.

    ``trimmed``: the plain loop's model, too, leaves out what no output depends on.

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
        with PlainLoop(config, run.dataset, run.partition, shared, personal, actors, trimmed) as loop:
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
        "plain_is_trimmed": trimmed,
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
SETTLED = 5  # from this round on, memory is expected not to grow


def many_clients(workload: Workload, rounds: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measure the workload with all its clients and with a few, in turn, each with actors of its own.

    A few are ``FEW_CLIENTS``, or a tenth of all, and at least a cohort.

    Raises:
        ConfigError: an override is wrong, or the resources are not there.
    """
    if rounds <= SETTLED:
        raise ConfigError(f"--rounds: memory is compared with that of round {SETTLED}, so take at least {SETTLED + 1}")
    facts = machine()
    started = psutil.Process().create_time()
    all_seconds: list[float] = []
    few_seconds: list[float] = []
    history: list[float] = []
    overrides = [*overrides, *_half_of_each(overrides)]
    with driven(workload, overrides, rounds) as everyone:
        ready = time.time() - started
        all_seconds.append(everyone.round(0)[0])
        first = time.time() - started
        memory = Memory(everyone.processes())
        fewer = max(everyone.config.cohort_size, min(FEW_CLIENTS, everyone.config.data.num_clients // 10))
        few_clients = [f"data.num_clients={fewer}"]
        with driven(workload, [*overrides, *few_clients], rounds) as few:
            few.round(0)
            for round in range(1, rounds):
                for side in ("few", "all") if round % 2 else ("all", "few"):
                    if side == "few":
                        few_seconds.append(few.round(round)[0])
                    else:
                        all_seconds.append(everyone.round(round)[0])
                        history.append(memory.look())
        states, state_bytes = ray.get(everyone.actor.kept.remote())
    ratios = np.array(all_seconds[1:]) / np.array(few_seconds)
    config = everyone.config
    return {
        **_described(workload, config),
        "num_clients": config.data.num_clients,
        "clients_with_state": states,
        "state_bytes_per_client": state_bytes,
        "raysim_seconds_per_round": float(np.median(all_seconds[1:])),
        "few_clients": fewer,
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
    """Overrides that give each of two pools of actors half of every CPU; only one of the pools works at a time.

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
