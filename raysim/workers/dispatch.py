"""A round's tasks on their way through the actors of a pool: order, retries, deadlines.

An actor that dies is replaced, and its client batches of the round run again elsewhere from the same inputs: the sum that
died with it held all of them. Which actor runs what never changes a result.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from raysim.training.aggregation import PartialSum
from raysim.workers.task_durations import AUTO_TIMEOUT
from raysim.errors import ClientError, StatesLost
from raysim.storage.slot_file import node_of
from raysim.training.tasks import Task, TaskResult

if TYPE_CHECKING:
    from raysim.workers.actor_pool import ActorPool

log = logging.getLogger(__name__)

ACTOR_LOST = (
    RayActorError,
    ActorUnavailableError,  # leaves open whether the call ran, so the actor is given up
    ActorUnschedulableError,  # its node is gone
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)
NEARBY = 16  # tasks at the head of the queue among which a worker prefers one whose states are on its node
IN_FLIGHT = 2  # tasks per actor, so that none waits for the driver
PATIENCE_SECONDS = 60  # without any actor, before the user is told


@dataclass
class Worker:
    """An actor of the pool: what it computes on, the tasks that it runs, and those in its partial sum."""

    name: int
    handle: Any
    configured: ray.ObjectRef = None
    """Its last call to ``configure``, until that is answered."""
    there: ray.ObjectRef = None
    """Answered as soon as the actor is there to begin with that."""
    begun: float | None = None
    """When it did."""
    machine: dict[str, str] | None = None
    """What it answered; None as long as it is not ready."""
    node: int = 0
    """Number of its node among those with states."""
    running: dict[ray.ObjectRef, Task] = field(default_factory=dict)
    since: float = 0.0
    """When the first of ``running`` began."""
    summed: list[Task] = field(default_factory=list)
    failed_starts: int = 0


@dataclass(frozen=True)
class Done:
    """What came of the tasks of a round."""

    results: list[TaskResult]
    """In task order, without those of dropped tasks."""
    parts: list[PartialSum]
    """Of the tasks that train, one per actor."""
    dropped: list[Task]
    """That killed their actor too often (``cohort.on_failure``)."""


class Dispatch:
    """The tasks of one round on their way through a pool; see ``ActorPool.run``."""

    def __init__(
        self,
        pool: ActorPool,
        round: int,
        tasks: Sequence[Task],
        version: int,
        broadcast: ray.ObjectRef,
        ready: Callable[[Task, int], Task],
        report: Callable[[int, int, list[str]], None],
    ) -> None:
        assert pool.config is not None
        self._pool, self._tasks, self._version, self._broadcast = pool, tasks, version, broadcast
        self._ready, self._report = ready, report
        self._round = round
        self._settings, self._drops = pool.config.resources, pool.config.cohort.on_failure == "drop"
        # The longest first, so that no actor starts a long one when all others are done.
        self._queue = deque(sorted(tasks, key=pool.costs.expected, reverse=True))
        self._results: dict[int, TaskResult] = {}
        self._dropped: list[Task] = []
        self._losses: dict[int, int] = {}  # by task: how many actors died with it
        self._patience = time.monotonic() + PATIENCE_SECONDS

    def run(self) -> Done:
        while True:
            while self._queue or any(worker.running for worker in self._pool.workers):
                self._hand_out()
                for ref in self._pool.wait(self._awaited()):
                    if not self._pool.settle(ref):
                        self._take(ref)
                self._look_after()
            parts = self._collect()
            if not self._queue:  # an actor may have been lost with its sum at the very end
                break
        self._tell()
        for worker in self._pool.workers:
            worker.summed.clear()
        results = [self._results[task.index] for task in self._tasks if task.index in self._results]
        assert len(results) + len(self._dropped) == len(self._tasks)
        return Done(results, parts, self._dropped)

    def _awaited(self) -> list[ray.ObjectRef]:
        running = [ref for worker in self._pool.workers for ref in worker.running]
        return running + [worker.configured for worker in self._pool.workers if worker.configured is not None]

    def _hand_out(self) -> None:
        ready = [worker for worker in self._pool.workers if worker.machine is not None]
        while self._queue and ready:
            worker = min(ready, key=self._busy_for)
            # At the end of a round a task had better wait for the first idle actor than behind another task.
            if len(worker.running) >= (IN_FLIGHT if len(self._queue) > len(ready) else 1):
                break
            task = self._ready(self._next_for(worker), worker.node)
            if not worker.running:
                worker.since = time.monotonic()
            worker.running[worker.handle.run.remote(task, self._version, self._broadcast)] = task
        self._tell()

    def _next_for(self, worker: Worker) -> Task:
        """The next task; with several nodes, one of the next few whose clients' states are on the worker's node."""
        for i, task in enumerate(islice(self._queue, NEARBY if self._pool.several_nodes else 0)):
            if (node_of(task.read) == worker.node).mean() > 0.5:
                del self._queue[i]
                return task
        return self._queue.popleft()

    def _busy_for(self, worker: Worker) -> tuple[int, float]:
        return len(worker.running), sum(self._pool.costs.expected(task) for task in worker.running.values())

    def _take(self, ref: ray.ObjectRef) -> None:
        worker = next((w for w in self._pool.workers if ref in w.running), None)
        if worker is None:
            return  # its actor was lost a moment ago
        try:
            result: TaskResult = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, StatesLost):
                raise error.cause from error
            raise
        except ACTOR_LOST as error:
            self._lost(worker, error)
            return
        worker.since = time.monotonic()
        task = worker.running.pop(ref)
        self._results[task.index] = replace(result, actor=worker.name)
        self._pool.costs.measured(result)
        if task.kind == "train":
            worker.summed.append(task)

    def _look_after(self) -> None:
        """Replace actors that hang; say it when there is none to work."""
        self._pool.replace_hung()
        now = time.monotonic()
        for worker in self._pool.workers:
            if worker.running and now - worker.since > (limit := self._limit(next(iter(worker.running.values())))):
                self._lost(worker, TimeoutError(f"no answer for {limit:g} seconds (resources.client_timeout)"))
        if any(worker.machine is not None for worker in self._pool.workers):
            self._patience = now + PATIENCE_SECONDS
        elif now > self._patience:
            self._patience = now + PATIENCE_SECONDS
            self._pool.say(
                f"round {self._round + 1} waits for Ray to place an actor: is the cluster busy, or a node gone?"
            )

    def _limit(self, task: Task) -> float:
        asked = self._settings.client_timeout
        return self._pool.costs.deadline(task, self._settings.compile) if asked == "auto" else asked

    def _collect(self) -> list[PartialSum]:
        """The partial sum of every actor that trained."""
        refs = [(w, w.handle.partial_sum.remote(self._round)) for w in self._pool.workers if w.summed]
        asked = self._settings.client_timeout
        limit = time.monotonic() + (AUTO_TIMEOUT["least"] if asked == "auto" else asked)
        parts = []
        for worker, ref in refs:
            try:
                parts.append(ray.get(ref, timeout=max(0.1, limit - time.monotonic())))
            except ACTOR_LOST as error:
                self._lost(worker, error)
        return parts

    def _lost(self, worker: Worker, error: Exception) -> None:
        """Replace the actor; what it was running and what only its sum knew goes back into the queue."""
        again = [*worker.running.values(), *worker.summed]
        log.warning("client actor %d was lost (%s); %d tasks run again", worker.name, type(error).__name__, len(again))
        for task in again:
            self._results.pop(task.index, None)
        for suspect in [*worker.running.values()][:1]:  # an actor runs one task after another
            self._losses[suspect.index] = self._losses.get(suspect.index, 0) + 1
            if self._losses[suspect.index] > self._settings.max_retries:
                self._give_up(suspect, worker, error)
                again.remove(suspect)
        self._pool.replace(worker)
        self._queue.extendleft(reversed(again))  # the suspect first: it had better be found soon

    def _give_up(self, task: Task, worker: Worker, error: Exception) -> None:
        who = f"clients {task.clients.tolist()}"
        problem = (
            f"round {self._round}: the actors that ran {who} died {self._losses[task.index]} times (the last: {error})"
        )
        log.warning("%s\n%s", problem, words := self._pool.last_words(worker))
        if not self._drops or task.kind == "global":
            hint = "cohort.on_failure: drop goes on without them"
            raise ClientError(f"{problem}; {hint}. The last lines of its log:\n{words}") from error
        self._pool.say(
            f"round {self._round + 1} goes on without {who}: their actors died {self._losses[task.index]} times"
        )
        self._dropped.append(task)

    def _tell(self) -> None:
        running = [_describe(w, task) for w in self._pool.workers for task in [*w.running.values()][:1]]
        self._report(len(self._results), len(self._tasks), running)


def _describe(worker: Worker, task: Task) -> str:
    ids = ", ".join(map(str, task.clients[:4].tolist())) + (", …" if len(task.clients) > 4 else "")
    return f"actor {worker.name}: {task.kind} {ids}"
