"""A pool of client actors and the dispatch of a round's tasks to them: the one place with ``ray.wait``.

An actor that dies is replaced, and its client batches of the round run again elsewhere from the same inputs: the sum that
died with it held all of them. Which actor runs what never changes a result.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
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
from raysim.errors import ClientError
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
PATIENCE_SECONDS = 60  # for actors to start, before the user is told
MAX_RETRIES = 3  # of a task, after which its clients are taken to kill their actor


class Stopped(Exception):
    """The run was asked to stop."""


@dataclass
class Worker:
    """An actor of the pool, its last call to ``configure``, the tasks that it runs, and those in its partial sum."""

    name: int
    handle: Any
    configured: ray.ObjectRef = None
    running: dict[ray.ObjectRef, Task] = field(default_factory=dict)
    summed: list[Task] = field(default_factory=list)


class Costs:
    """Seconds per sample of each kind of task, as measured in this run; decides the order of tasks, never a result."""

    def __init__(self) -> None:
        # Before the first measurement: a step of training is a forward and a backward pass, which costs two of those.
        self._seconds: dict[str, float] = {"train": 3.0, "evaluate": 1.0, "global": 1.0}
        self._measured: set[str] = set()

    def expected(self, task: Task) -> float:
        return self._seconds[task.kind] * task.samples

    def measured(self, result: TaskResult) -> None:
        kind, now = result.task.kind, result.seconds / result.task.samples
        if not self._measured:  # all other kinds are guessed in proportion
            scale = now / self._seconds[kind]
            self._seconds = {k: v * scale for k, v in self._seconds.items()}
        self._seconds[kind] = 0.8 * self._seconds[kind] + 0.2 * now if kind in self._measured else now
        self._measured.add(kind)


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
        self.workers = [Worker(i, self._start()) for i in range(size)]
        self._setup: ray.ObjectRef | None = None
        self.costs = Costs()
        self.machines: list[dict[str, str]] = []
        """What each actor answered to ``configure``."""

    def _start(self) -> Any:
        actor_class: Any = ClientActor  # Ray's decorator adds `options`
        return actor_class.options(**self._options).remote(self._import_path)

    def configure(self, setup: RunSetup, say: Callable[[str], None]) -> dict[str, str]:
        """Get every actor ready for a run; returns what they compute on.

        Actors that Ray can't place yet, because others use the cluster, are waited for; ``say`` is told so.
        """
        self._setup, self.costs = ray.put(setup), Costs()
        for worker in self.workers:
            worker.running, worker.summed = {}, []  # what a run left that ended with an error
            worker.configured = worker.handle.configure.remote(self._setup)
        waiting = {worker.configured: worker for worker in self.workers}
        self.machines = []
        tries: dict[int, int] = {}
        patience = time.monotonic() + PATIENCE_SECONDS
        while waiting:
            if time.monotonic() > patience:
                patience = float("inf")
                say(f"waiting for Ray to start {len(waiting)} of {len(self.workers)} actors; is the cluster busy?")
            for ref in self.wait(list(waiting), timeout=1.0):
                worker = waiting.pop(ref)
                try:
                    self.machines.append(ray.get(ref))
                except ACTOR_LOST:
                    tries[worker.name] = tries.get(worker.name, 0) + 1
                    if tries[worker.name] > MAX_RETRIES:
                        raise
                    self.replace(worker)
                    waiting[worker.configured] = worker
        return self.machines[0]

    def run(
        self,
        round: int,
        tasks: Sequence[Task],
        version: int,
        broadcast: ray.ObjectRef,
        retry: Callable[[Task], Task],
        report: Callable[[int, int, list[str]], None],
    ) -> tuple[list[TaskResult], list[PartialSum]]:
        """Run tasks; returns their results in task order, and the partial sums of those that train, in this round.

        ``retry`` makes a task ready to run again (with fresh slots); ``report`` is told (done, total, what is running).
        """
        return _Dispatch(self, round, tasks, version, broadcast, retry, report).run()

    def replace(self, worker: Worker) -> None:
        """Put a new actor in the place of one that was lost, ready for the same run."""
        ray.kill(worker.handle)
        worker.handle, worker.running, worker.summed = self._start(), {}, []
        # Not waited for: an actor's calls run in order, and one that can't be configured fails its first task.
        worker.configured = worker.handle.configure.remote(self._setup)

    def wait(self, refs: list[ray.ObjectRef], timeout: float = 0.5) -> list[ray.ObjectRef]:
        """Those that are ready, maybe none; raises ``Stopped`` when asked to."""
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        if not ready:
            ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if self._stop.is_set():
            raise Stopped
        return ready


class _Dispatch:
    """The tasks of one round on their way through a pool; see ``ActorPool.run``."""

    def __init__(
        self,
        pool: ActorPool,
        round: int,
        tasks: Sequence[Task],
        version: int,
        broadcast: ray.ObjectRef,
        retry: Callable[[Task], Task],
        report: Callable[[int, int, list[str]], None],
    ) -> None:
        self._pool, self._tasks, self._version, self._broadcast = pool, tasks, version, broadcast
        self._retry, self._report = retry, report
        self._round = round
        # The longest first, so that no actor starts a long one when all others are done.
        self._queue = deque(sorted(tasks, key=pool.costs.expected, reverse=True))
        self._results: dict[int, TaskResult] = {}
        self._losses: dict[int, int] = {}  # by task: how many actors died with it

    def run(self) -> tuple[list[TaskResult], list[PartialSum]]:
        while True:
            while self._queue or any(worker.running for worker in self._pool.workers):
                self._hand_out()
                for ref in self._pool.wait([ref for worker in self._pool.workers for ref in worker.running]):
                    self._take(ref)
            parts = self._collect()
            if not self._queue:  # an actor may have been lost with its sum at the very end
                break
        self._tell()
        for worker in self._pool.workers:
            worker.summed.clear()
        return [self._results[task.index] for task in self._tasks], parts

    def _hand_out(self) -> None:
        workers = self._pool.workers
        while self._queue:
            worker = min(workers, key=self._busy_for)
            # At the end of a round a task had better wait for the first idle actor than behind another task.
            if len(worker.running) >= (IN_FLIGHT if len(self._queue) > len(workers) else 1):
                break
            task = self._queue.popleft()
            worker.running[worker.handle.run.remote(task, self._version, self._broadcast)] = task
        self._tell()

    def _busy_for(self, worker: Worker) -> tuple[int, float]:
        return len(worker.running), sum(self._pool.costs.expected(task) for task in worker.running.values())

    def _take(self, ref: ray.ObjectRef) -> None:
        worker = next((w for w in self._pool.workers if ref in w.running), None)
        if worker is None:
            return  # its actor was lost a moment ago
        try:
            result: TaskResult = ray.get(ref)
        except ACTOR_LOST as error:
            self._lost(worker, error)
            return
        task = worker.running.pop(ref)
        self._results[task.index] = result
        self._pool.costs.measured(result)
        if task.kind == "train":
            worker.summed.append(task)

    def _collect(self) -> list[PartialSum]:
        """The partial sum of every actor that trained."""
        refs = [(w, w.handle.partial_sum.remote(self._round)) for w in self._pool.workers if w.summed]
        parts = []
        for worker, ref in refs:
            try:
                parts.append(ray.get(ref))
            except ACTOR_LOST as error:
                self._lost(worker, error)
        return parts

    def _lost(self, worker: Worker, error: Exception) -> None:
        """Replace the actor; what it was running and what only its sum knew goes back into the queue."""
        again = [*worker.running.values(), *worker.summed]
        log.warning("client actor %d was lost (%s); %d tasks run again", worker.name, type(error).__name__, len(again))
        for task in again:
            self._results.pop(task.index, None)
            self._losses[task.index] = self._losses.get(task.index, 0) + 1
            if self._losses[task.index] > MAX_RETRIES:
                raise ClientError(
                    f"round {self._round}: the actors that ran clients {task.clients.tolist()} died {MAX_RETRIES + 1} times "
                    f"(the last: {error})"
                ) from error
        self._pool.replace(worker)
        self._queue.extendleft(self._retry(task) for task in again)

    def _tell(self) -> None:
        running = [_describe(w, task) for w in self._pool.workers for task in [*w.running.values()][:1]]
        self._report(len(self._results), len(self._tasks), running)


def _describe(worker: Worker, task: Task) -> str:
    ids = ", ".join(map(str, task.clients[:4].tolist())) + (", …" if len(task.clients) > 4 else "")
    return f"actor {worker.name}: {task.kind} {ids}"
