"""The tasks of a round on their way through the actors of a pool: order, retries, timeouts.

An actor that dies is replaced, and its client batches of the round run again elsewhere from the same inputs: the sum that
died with it held all of them. Which actor runs what never changes a result.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heapreplace
from itertools import islice

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from raysim.errors import BrokenDevice, ClientError, StatesLost, WorkersLost
from raysim.storage.personal_states import node_of
from raysim.training.aggregation import PartialSum
from raysim.training.tasks import EvaluateGlobal, Task, TaskResult
from raysim.workers.actor_pool import PATIENCE_SECONDS, ActorPool
from raysim.workers.durations_and_timeouts import LEAST_TIMEOUT
from raysim.workers.sum_tree import FAN_IN, depth, root_of_sums
from raysim.workers.worker import ACTOR_LOST, Worker, interleaved

log = logging.getLogger(__name__)

NEARBY = 16  # among this many next tasks of the queue, a worker prefers one whose states are on its node
MOST_SHOWN = 16  # actors of which ``Progress`` says what they do
SLOWEST = 10e6  # bytes per second at which partial sums may travel before they count as lost
IN_FLIGHT = 2  # tasks per actor, so that none waits for the driver


@dataclass(frozen=True)
class Progress:
    """How many tasks of a round are done, and what the first few actors are working on."""

    done: int
    total: int
    running: tuple[str, ...]


@dataclass(frozen=True)
class Completed:
    """The outcome of the tasks of a round."""

    results: list[TaskResult]
    """In task order, without those of dropped tasks."""
    sums: list[PartialSum]
    """The partial sums of the tasks that trained, one per actor."""
    dropped: list[Task]
    """The tasks that killed their actor too often (``cohort.on_failure``)."""


class Dispatch:
    """The tasks of one round on their way through a pool.

    Args:
        round: the round whose clients train.
        tasks: the tasks of this round, and evaluations left over from the previous one.
        version, broadcast: what the server sends, in the object store; equal versions are equal broadcasts.
        place: prepares a task for a worker of a node, before every attempt.
        sum_bytes: of a partial sum, at most.
        one_by_one: collect the sums from each actor directly, since they hold what is not summed up.
    """

    def __init__(
        self,
        pool: ActorPool,
        round: int,
        tasks: Sequence[Task],
        version: int,
        broadcast: ray.ObjectRef,
        place: Callable[[Task, int], Task],
        sum_bytes: int = 0,
        one_by_one: bool = False,
    ) -> None:
        assert pool.config is not None
        self._pool, self._round, self._tasks = pool, round, tasks
        self._version, self._broadcast, self._place = version, broadcast, place
        self._resources, self._drops = pool.config.resources, pool.config.cohort.on_failure == "drop"
        # The longest first, so that no actor starts a long one when all others are done.
        self._queue = deque(sorted(tasks, key=pool.durations.expected, reverse=True))
        self._owners: dict[ray.ObjectRef, Worker] = {}  # of the tasks that are under way
        self._results: dict[tuple[int, int], TaskResult] = {}
        self._dropped: list[Task] = []
        self._sum_bytes, self._lost_sums, self._one_by_one = sum_bytes, 0, one_by_one
        self._losses: dict[tuple[int, int], int] = {}  # by task: how many actors died with it
        self._patience = time.monotonic() + PATIENCE_SECONDS

    def run(self) -> Generator[Progress, None, Completed]:
        """Run the tasks; yields how far they are.

        Raises:
            StatesLost: a node that had a client's state is gone.
            ClientError: an algorithm raised, or clients kill their actors.
            Stopped: the run is to end.
        """
        self._pool.grow()
        while True:
            while self._queue or self._owners:
                self._hand_out()
                yield self._progress()
                for ref in self._pool.wait([*self._owners, *self._pool.pending_answers]):
                    if not self._pool.take_answer(ref):
                        self._take_result(ref)
                self._check_workers()
            sums = self._collect()
            if not self._queue:  # an actor may have been lost with its sum at the very end
                break
        yield self._progress()
        for worker in self._pool.workers:
            worker.end_round()
        results = [self._results[task.key] for task in self._tasks if task.key in self._results]
        assert len(results) + len(self._dropped) == len(self._tasks)
        return Completed(results, sums, self._dropped)

    def _hand_out(self) -> None:
        if not self._queue or not (ready := self._pool.ready):
            return
        nearby = NEARBY if self._pool.several_nodes else 0
        least = [(len(w.running), self._backlog(w), place, w) for place, w in enumerate(interleaved(ready))]
        heapify(least)
        while self._queue:
            tasks, seconds, place, worker = least[0]
            # At the end of a round a task waits for the first idle actor rather than behind another task.
            if tasks >= (IN_FLIGHT if len(self._queue) > len(ready) else 1):
                break
            task = self._next_for(worker, nearby)
            self._owners[worker.assign(self._place(task, worker.node), self._version, self._broadcast)] = worker
            heapreplace(least, (tasks + 1, seconds + self._pool.durations.expected(task), place, worker))

    def _next_for(self, worker: Worker, nearby: int) -> Task:
        """The next task; with several nodes, one of the next few whose clients' states are on the worker's node."""
        for i, task in enumerate(islice(self._queue, nearby)):
            if (node_of(task.read) == worker.node).mean() > 0.5:
                del self._queue[i]
                return task
        return self._queue.popleft()

    def _backlog(self, worker: Worker) -> float:
        return sum(map(self._pool.durations.expected, worker.running))

    def _take_result(self, ref: ray.ObjectRef) -> None:
        if (worker := self._owners.get(ref)) is None:
            return  # its actor was lost a moment ago
        try:
            result: TaskResult = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, BrokenDevice):
                self._lost(worker, error.cause)
                return
            if isinstance(error.cause, StatesLost):
                raise error.cause from error
            raise
        except ACTOR_LOST as error:
            self._lost(worker, error)
            return
        task = worker.finish(ref)
        del self._owners[ref]
        self._results[task.key] = replace(result, actor=worker.number)
        self._pool.durations.measure(result)

    def _check_workers(self) -> None:
        """Replace actors that hang; tell the user when none is ready."""
        self._pool.replace_hung()
        for worker in self._pool.workers:
            if worker.running and worker.seconds_on_task > (limit := self._timeout(worker.running[0])):
                self._lost(worker, TimeoutError(f"no answer for {limit:g} seconds (resources.client_timeout)"))
        now = time.monotonic()
        if self._pool.ready:
            self._patience = now + PATIENCE_SECONDS
        elif now > self._patience:
            self._patience = now + PATIENCE_SECONDS
            self._pool.notify(
                f"round {self._round + 1} waits for Ray to place an actor: is the cluster busy, or a node gone?"
            )

    def _timeout(self, task: Task) -> float:
        asked = self._resources.client_timeout
        return self._pool.durations.timeout(task, self._resources.compile) if asked == "auto" else asked

    def _collect(self) -> list[PartialSum]:
        """The partial sums of all actors that trained, as one or a few."""
        refs = [(w, w.handle.partial_sum.remote(self._round)) for w in self._pool.workers if w.summed]
        if not self._one_by_one and (root := root_of_sums(refs, self._round)) is not None:
            try:
                return [ray.get(root, timeout=self._patience_for(depth(len(refs)) * FAN_IN))]
            except (*ACTOR_LOST, RayTaskError) as error:  # which actor was lost turns out below, one by one
                log.warning("partial sums did not meet (%s); they are collected one by one", type(error).__name__)
        sums, lost, pending = [], None, {ref: worker for worker, ref in refs}
        limit = time.monotonic() + self._patience_for(len(refs))
        while pending:
            ready = self._pool.wait(list(pending))
            for ref in ready:
                worker = pending.pop(ref)
                try:
                    sums.append(ray.get(ref))
                except ACTOR_LOST as error:
                    self._lost(worker, error)
                    lost = error
            if not ready and time.monotonic() > limit:
                lost = GetTimeoutError(f"{len(pending)} of {len(refs)} did not arrive")
                for worker in pending.values():
                    self._lost(worker, lost)
                pending = {}
        if lost is not None:
            self._count_lost_sums(lost)
        return sums

    def _patience_for(self, sums: int) -> float:
        """Seconds for so many partial sums to travel one after another."""
        asked = self._resources.client_timeout
        return LEAST_TIMEOUT + sums * self._sum_bytes / SLOWEST if asked == "auto" else asked

    def _count_lost_sums(self, error: Exception) -> None:
        """Client batches whose sum is lost train again; not for ever.

        Raises:
            ClientError: sums were lost more than ``resources.max_retries`` times in this round.
        """
        self._lost_sums += 1
        if self._lost_sums > self._resources.max_retries:
            why = "their actors died"
            if isinstance(error, GetTimeoutError):
                why = "they did not arrive in time: raise resources.client_timeout, or try evaluate.sensitivity: false"
            raise WorkersLost(
                f"round {self._round}: partial sums, up to {self._sum_bytes / 1e6:.0f} MB each, were lost "
                f"{self._lost_sums} times when they were collected, since {why} ({type(error).__name__}: {error})"
            ) from error

    def _lost(self, worker: Worker, error: Exception) -> None:
        """Replace the actor; what it was running and what only its sum had goes back into the queue."""
        suspect = worker.running[0] if worker.running else None  # an actor runs one task after another
        drop = suspect is not None and self._kills_actors(suspect, worker, error)
        for ref in worker.refs:
            del self._owners[ref]
        again = self._pool.replace(worker)
        log.warning(
            "client actor %d was lost (%s); %d tasks run again", worker.number, type(error).__name__, len(again)
        )
        for task in again:
            self._results.pop(task.key, None)
        if drop:
            self._dropped.append(again.pop(0))
        self._queue.extendleft(reversed(again))  # the suspect first, so that it is identified soon

    def _kills_actors(self, task: Task, worker: Worker, error: Exception) -> bool:
        """Count an actor that died with a task; returns whether that is one too many, so that the task is dropped.

        Raises:
            ClientError: it is one too many, and ``cohort.on_failure`` says ``stop``.
        """
        times = self._losses[task.key] = self._losses.get(task.key, 0) + 1
        if times <= self._resources.max_retries:
            return False
        who = f"clients {task.clients.tolist()}"
        problem = f"round {self._round}: the actors that ran {who} died {times} times (the last: {error})"
        log_tail = self._pool.log_tail(worker)
        log.warning("%s\n%s", problem, log_tail)
        if not self._drops or isinstance(task, EvaluateGlobal):
            hint = "cohort.on_failure: drop goes on without them"
            raise ClientError(f"{problem}; {hint}. The last lines of its log:\n{log_tail}") from error
        self._pool.notify(f"round {self._round + 1} goes on without {who}: their actors died {times} times")
        return True

    def _progress(self) -> Progress:
        running = (_describe(worker, worker.running[0]) for worker in self._pool.workers if worker.running)
        return Progress(len(self._results), len(self._tasks), tuple(islice(running, MOST_SHOWN)))


def _describe(worker: Worker, task: Task) -> str:
    ids = ", ".join(map(str, task.clients[:4].tolist())) + (", …" if len(task.clients) > 4 else "")
    return f"actor {worker.number}: {task.kind} {ids}"
