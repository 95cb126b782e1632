"""CPU time that the driver spends on a task when it has thousands of actors, on a machine that has room for two.

The pool's entries share two Ray actors that compute nothing: they answer each task after a random time, so that results
arrive spread over the round, with reports as large as those of client batches of 64.

    python benchmarks/driver.py --actors 4000 --tasks 4000 --seconds 20
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import ray

from raysim.bench.workloads import WORKLOADS
from raysim.config.loading import config_of
from raysim.training.aggregation import PartialSum, Weights, merged
from raysim.training.evaluation import Evaluation
from raysim.training.tasks import Task, TaskResult, Train, TrainingReport
from raysim.workers.actor_pool import ActorPool
from raysim.workers.dispatch import Dispatch
from raysim.workers.remote_states import StateNodes
from raysim.workers.run_setup import Machine, RunSetup

CLIENTS = 64  # per batch


@ray.remote(num_cpus=0, max_concurrency=20_000)
class Idle:
    """Answers as a client actor does, after a while."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        ones, counts = np.ones(CLIENTS), np.ones(CLIENTS, np.int64)
        evaluation = Evaluation(np.arange(CLIENTS), counts, counts, np.ones((0, 10), np.float32))
        norms = {"all": ones, "attention": ones, "mlp": ones}
        self._report = TrainingReport(np.ones(CLIENTS, bool), {"loss": ones}, {"loss": ones}, norms, evaluation)

    async def ping(self) -> None:
        pass

    async def configure(self, setup: RunSetup) -> Machine:
        return Machine("cpu", "none", "", "node", 0, "")

    async def open_states(self, node: int, path: Path) -> None:
        pass

    async def run(self, task: Task, version: int, broadcast: object) -> TaskResult:
        await asyncio.sleep(random.random() * self._seconds)
        return TaskResult(task, self._report, time.time(), self._seconds)

    async def partial_sum(self, round: int) -> PartialSum:
        return PartialSum(round)

    async def merged(self, round: int, *parts: PartialSum) -> PartialSum:
        return merged(parts, round)


class SharedPool(ActorPool):
    """Its entries take turns in being one of a few actors."""

    def __init__(self, size: Callable[[], int], handles: list[Any]) -> None:
        self._handles, self._next = handles, 0
        super().__init__(size, {}, [], threading.Event(), click.echo)

    def _start(self) -> Any:
        self._next += 1
        return self._handles[self._next % len(self._handles)]


class OneNode:
    """No personal states."""

    def number(self, node_id: str) -> int:
        return 0

    def at(self, node: int) -> tuple[int, Path, dict[int, Any]]:
        return node, Path(), {}


def tasks(round: int, number: int) -> list[Task]:
    weights = {name: Weights(np.ones(CLIENTS, np.int64), CLIENTS * number) for name in ("samples", "uniform")}
    reports, read = np.ones(CLIENTS, bool), np.arange(CLIENTS)

    def task(index: int) -> Task:
        ids = np.arange(CLIENTS) + index * CLIENTS
        return Train(round=round, index=index, clients=ids, read=read, samples=512, weights=weights, reports=reports)

    return [task(index) for index in range(number)]


@click.command()
@click.option("--actors", default=4000, show_default=True)
@click.option("--tasks", "number", default=4000, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Within which an actor answers a task.")
@click.option("--rounds", default=3, show_default=True)
def main(actors: int, number: int, seconds: float, rounds: int) -> None:
    """CPU time of the driver per task."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    actor: Any = Idle
    pool = SharedPool(lambda: actors, [actor.remote(seconds) for _ in range(2)])
    nothing, states = ray.put(None), OneNode()
    setup = RunSetup(config_of(WORKLOADS["many"].raw, [], "many"), *[nothing] * 5, 10, 3, algorithm_digest="")
    pool.configure(setup, cast(StateNodes, states))
    broadcast = ray.put({"shared": np.zeros(100_000, np.float32)})

    def place(task: Task, node: int) -> Task:
        return replace(task, write=np.arange(CLIENTS))

    for round in range(rounds):
        due = tasks(round, number)
        cpu, process, begin = time.thread_time(), time.process_time(), time.perf_counter()
        looks = sum(1 for _ in Dispatch(pool, round, due, 0, broadcast, place).run())
        cpu, process, passed = time.thread_time() - cpu, time.process_time() - process, time.perf_counter() - begin
        click.echo(
            f"round {round}: {number:,} tasks, {actors:,} actors, {passed:.1f} s, {looks} looks; per task "
            f"{1000 * cpu / number:.2f} ms of CPU in the driver's thread, {1000 * process / number:.2f} ms in its process"
        )


if __name__ == "__main__":
    main()
