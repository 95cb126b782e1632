"""A pool of client actors and the dispatch of a round's tasks to them: the one place with ``ray.wait``.

An actor that dies is replaced, and its client batches of the round run again elsewhere from the same inputs: the sum that
died with it held all of them. Which actor runs what never changes a result.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from raysim.aggregation import PartialSum
from raysim.client_actor import ClientActor
from raysim.tasks import RunSetup, Task, TaskResult

log = logging.getLogger(__name__)

ACTOR_LOST = (
    RayActorError,
    ActorUnavailableError,  # leaves open whether the call ran, so the actor is given up
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)
IN_FLIGHT = 2  # tasks per actor, so that none waits for the driver
MAX_RETRIES = 3  # of a task, after which its clients are taken to kill their actor


class Stopped(Exception):
    """The run was asked to stop."""


@dataclass
class Worker:
    """An actor of the pool, the tasks that it was given, and those that are in its partial sum of the round."""

    name: int
    handle: Any
    running: dict[ray.ObjectRef, Task] = field(default_factory=dict)
    summed: list[Task] = field(default_factory=list)


def cut(clients: NDArray[np.int64], sizes: NDArray[np.int64], clients_per_batch: int) -> list[NDArray[np.int64]]:
    """Client batches as a function of the clients alone: sorted by size, largest first, so that padding stays small.

    ``sizes`` (K,) are numbers of samples. The largest first is also the best order to run them in.
    """
    order = clients[np.lexsort((clients, -sizes))]
    return [order[i : i + clients_per_batch] for i in range(0, len(order), clients_per_batch)]


class ActorPool:
    """A fixed number of client actors, each with the same resources.

    Args:
        size: number of actors.
        options: Ray's options of an actor (``num_cpus``, ``num_gpus``, where to place it).
        import_path: folders from which a user's own algorithm can be imported.
        stop: set by the driver to end a run; ``Stopped`` is raised then.
    """

    def __init__(self, size: int, options: dict[str, Any], import_path: list[str], stop: threading.Event) -> None:
        self._options, self._import_path, self._stop = options, import_path, stop
        self._workers = [Worker(i, self._start()) for i in range(size)]
        self._setup: ray.ObjectRef | None = None

    def _start(self) -> Any:
        actor_class: Any = ClientActor  # Ray's decorator adds `options`
        return actor_class.options(**self._options).remote(self._import_path)

    def configure(self, setup: RunSetup) -> dict[str, str]:
        """Get every actor ready for a run; waits for actors that Ray can't place yet. Returns what they compute on."""
        self._setup = ray.put(setup)
        waiting = {worker.handle.configure.remote(self._setup): worker for worker in self._workers}
        machines: list[dict[str, str]] = []
        tries: dict[int, int] = {}
        while waiting:
            for ref in self._wait(list(waiting)):
                worker = waiting.pop(ref)
                try:
                    machines.append(ray.get(ref))
                except ACTOR_LOST:
                    tries[worker.name] = tries.get(worker.name, 0) + 1
                    if tries[worker.name] > MAX_RETRIES:
                        raise
                    self._replace(worker)
                    waiting[worker.handle.configure.remote(self._setup)] = worker
        return machines[0]

    def run(
        self,
        tasks: Sequence[Task],
        version: int,
        broadcast: ray.ObjectRef,
        retry: Callable[[Task], Task],
        report: Callable[[int, int, list[str]], None],
    ) -> tuple[list[TaskResult], list[PartialSum]]:
        """Run a round's tasks; returns their results in task order, and the partial sums of those that train.

        ``retry`` makes a task ready to run again (with fresh slots); ``report`` is told (done, total, what is running).
        """
        round = tasks[0].round
        queue, results = deque(tasks), dict[int, TaskResult]()
        attempts: dict[int, int] = {}

        def lost(worker: Worker, error: Exception) -> None:
            again = [*worker.running.values(), *worker.summed]
            log.warning(
                "client actor %d was lost (%s); %d tasks run again", worker.name, type(error).__name__, len(again)
            )
            for task in again:
                attempts[task.index] = attempts.get(task.index, 0) + 1
                results.pop(task.index, None)
                if attempts[task.index] > MAX_RETRIES:
                    raise RuntimeError(
                        f"round {round}: the actors that ran clients {task.clients.tolist()} died {MAX_RETRIES + 1} times"
                    ) from error
            self._replace(worker)
            self._configure_one(worker)
            queue.extendleft(retry(task) for task in again)

        while True:
            self._drain(queue, results, version, broadcast, lost, report, len(tasks))
            parts = self._collect(round, lost)
            if not queue:
                break
        for worker in self._workers:
            worker.summed.clear()
        return [results[task.index] for task in tasks], parts

    def _drain(
        self,
        queue: deque[Task],
        results: dict[int, TaskResult],
        version: int,
        broadcast: ray.ObjectRef,
        lost: Callable[[Worker, Exception], None],
        report: Callable[[int, int, list[str]], None],
        total: int,
    ) -> None:
        while queue or any(worker.running for worker in self._workers):
            while queue:
                worker = min(self._workers, key=lambda w: len(w.running))
                if len(worker.running) == IN_FLIGHT:
                    break
                task = queue.popleft()
                worker.running[worker.handle.run.remote(task, version, broadcast)] = task
            report(len(results), total, [_describe(w, t) for w in self._workers for t in [*w.running.values()][:1]])
            for ref in self._wait([ref for worker in self._workers for ref in worker.running]):
                owner = next((w for w in self._workers if ref in w.running), None)
                if owner is None:
                    continue  # its actor was lost while this list was worked through
                try:
                    result: TaskResult = ray.get(ref)
                except ACTOR_LOST as error:
                    lost(owner, error)
                    continue
                task = owner.running.pop(ref)
                results[task.index] = result
                if task.kind == "train":
                    owner.summed.append(task)
        report(len(results), total, [])

    def _collect(self, round: int, lost: Callable[[Worker, Exception], None]) -> list[PartialSum]:
        """The partial sum of every actor that trained; an actor that is lost now puts its tasks back into the queue."""
        refs = [(w, w.handle.partial_sum.remote(round)) for w in self._workers if w.summed]
        parts = []
        for worker, ref in refs:
            try:
                parts.append(ray.get(ref))
            except ACTOR_LOST as error:
                lost(worker, error)
        return parts

    def _replace(self, worker: Worker) -> None:
        ray.kill(worker.handle)
        worker.handle, worker.running, worker.summed = self._start(), {}, []

    def _configure_one(self, worker: Worker) -> None:
        # Not waited for: an actor's calls run in order, and one that can't be configured fails its first task.
        worker.handle.configure.remote(self._setup)

    def _wait(self, refs: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
        """Those that are ready, at least one; raises ``Stopped`` when asked to."""
        while True:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            if not ready:
                ready, _ = ray.wait(refs, num_returns=1, timeout=0.5)
            if self._stop.is_set():
                raise Stopped
            if ready:
                return ready


def _describe(worker: Worker, task: Task) -> str:
    ids = ", ".join(map(str, task.clients[:4].tolist())) + (", …" if len(task.clients) > 4 else "")
    return f"actor {worker.name}: {task.kind} {ids}"
