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
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from raysim.aggregation import PartialSum
from raysim.client_actor import ClientActor
from raysim.config import Config
from raysim.errors import ClientError, ConfigError, StatesLost
from raysim.node_states import StateNodes
from raysim.personal_store import node_of
from raysim.tasks import RunSetup, Task, TaskResult

log = logging.getLogger(__name__)

ACTOR_LOST = (
    RayActorError,
    ActorUnavailableError,  # leaves open whether the call ran, so the actor is given up
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)
NEARBY = 16  # tasks at the head of the queue among which a worker prefers one whose states are on its node
IN_FLIGHT = 2  # tasks per actor, so that none waits for the driver
PATIENCE_SECONDS = 60  # for actors to start, before the user is told
MAX_STARTS = 4  # in a row that an actor fails to start, after which starting is hopeless
AUTO_TIMEOUT = {"least": 60.0, "compiling": 900.0, "unmeasured": 1800.0, "times": 20.0}  # of resources.client_timeout


class Stopped(Exception):
    """The run was asked to stop."""


@dataclass
class Worker:
    """An actor of the pool: what it computes on, the tasks that it runs, and those in its partial sum."""

    name: int
    handle: Any
    configured: ray.ObjectRef = None
    """Its last call to ``configure``, until that is answered."""
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


class Costs:
    """Seconds per sample of each kind of task, as measured in this run; decides the order of tasks, never a result."""

    def __init__(self) -> None:
        # Before the first measurement: a step of training is a forward and a backward pass, which costs two of those.
        self._seconds: dict[str, float] = {"train": 3.0, "adapted": 3.0} | dict.fromkeys(
            ("evaluate", "unadapted", "global"), 1.0
        )
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

    def deadline(self, task: Task, compiles: bool) -> float:
        """Seconds after which a task is taken to hang."""
        if task.kind not in self._measured:
            return AUTO_TIMEOUT["unmeasured"]
        least = AUTO_TIMEOUT["compiling" if compiles else "least"]
        return max(least, AUTO_TIMEOUT["times"] * self.expected(task))


class ActorPool:
    """Client actors, each with the same resources, on as many nodes as Ray places them on.

    Args:
        size: gives the number of actors that the cluster has room for now; asked at the start and when a node joins.
        options: Ray's options of an actor (``num_cpus``, ``num_gpus``).
        import_path: folders from which a user's own algorithm can be imported.
        stop: set by the driver to end a run; ``Stopped`` is raised then.
        say: tells the user what is waited for.
        workers: that are already there, of ``split``.
    """

    def __init__(
        self,
        size: Callable[[], int],
        options: dict[str, Any],
        import_path: list[str],
        stop: threading.Event,
        say: Callable[[str], None],
        workers: Sequence[Worker] = (),
    ) -> None:
        self._size, self._options, self._import_path = size, options, import_path
        self._stop, self.say = stop, say
        self.workers: list[Worker] = [replace(worker, name=i) for i, worker in enumerate(workers)]
        self._setup: ray.ObjectRef | None = None
        self._states: StateNodes | None = None
        self._nodes: set[str] = set()
        self.config: Config | None = None
        self.costs = Costs()
        self.grow()

    def _start(self) -> Any:
        actor_class: Any = ClientActor  # Ray's decorator adds `options`
        return actor_class.options(**self._options).remote(self._import_path)

    def grow(self) -> None:
        """More actors if nodes have joined since the last time."""
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if nodes <= self._nodes:
            self._nodes = nodes
            return
        self._nodes, joined = nodes, bool(self._nodes)
        for _ in range(self._size() - len(self.workers)):
            worker = Worker(len(self.workers), self._start())
            self.workers.append(worker)
            if self._setup is not None:
                self._configure(worker)
            if joined:
                log.warning("a node has joined: actor %d is added", worker.name)

    def split(self, pools: int) -> list[ActorPool]:
        """Pools of ``size`` actors each, of which this is the first; actors that are left over end."""
        size = max(1, self._size())
        self.workers, others = self.workers[:size], self.workers[size:]
        result = [self]
        for i in range(pools - 1):
            given = others[i * size : (i + 1) * size]
            result.append(ActorPool(self._size, self._options, self._import_path, self._stop, self.say, given))
        for worker in others[(pools - 1) * size :]:
            ray.kill(worker.handle)
        return result

    @property
    def machines(self) -> list[dict[str, str]]:
        """What each actor that is ready answered to ``configure``."""
        return [worker.machine for worker in self.workers if worker.machine is not None]

    def configure(self, setup: RunSetup, states: StateNodes) -> dict[str, str]:
        """Get every actor ready for a run; returns what they compute on.

        Actors that Ray can't place yet, because others use the cluster, are waited for, with a message; after a minute the
        run starts with those that are there.
        """
        self._setup, self._states, self.config, self.costs = ray.put(setup), states, setup.config, Costs()
        for worker in self.workers:
            worker.running, worker.summed = {}, []  # what a run left that ended with an error
            self._configure(worker)
        patience = time.monotonic() + PATIENCE_SECONDS
        while waiting := [worker for worker in self.workers if worker.machine is None]:
            if time.monotonic() > patience:
                ready = len(self.workers) - len(waiting)
                then = f"; the run goes on with {ready}" if ready else ""
                self.say(
                    f"waiting for Ray to start {len(waiting)} of {len(self.workers)} actors: is the cluster busy?{then}"
                )
                if ready:
                    break
                patience = time.monotonic() + PATIENCE_SECONDS
            for ref in self.wait([worker.configured for worker in waiting], timeout=1.0):
                self.settle(ref)
        return self.machines[0]

    def _configure(self, worker: Worker) -> None:
        worker.machine, worker.configured = None, worker.handle.configure.remote(self._setup)

    def settle(self, ref: ray.ObjectRef) -> bool:
        """Take the answer of an actor to ``configure``; returns whether it was one.

        Raises:
            ConfigError: the actors compute on different kinds of machines.
            ClientError: actors can't be started.
        """
        worker = next((w for w in self.workers if w.configured is not None and w.configured == ref), None)
        if worker is None:
            return False
        assert self._states is not None
        try:
            machine: dict[str, str] = ray.get(ref)
            self._refuse_mixed(machine)
            worker.node = self._states.number(machine["node"])
            node, path, readers = self._states.at(worker.node)
            worker.handle.open_states.remote(node, path)
            worker.configured, worker.machine, worker.failed_starts = None, machine, 0
            self._introduce(readers)
        except ACTOR_LOST as error:
            worker.failed_starts += 1
            if worker.failed_starts >= MAX_STARTS:
                raise ClientError(f"client actor {worker.name} can't be started: {error}") from error
            self.replace(worker)
        return True

    def _introduce(self, readers: dict[int, Any]) -> None:
        """Tell all workers of all readers; calls of an actor run in order, so before its next task."""
        for worker in self.workers:
            if worker.machine is not None and readers:
                worker.handle.know.remote(readers)

    def _refuse_mixed(self, machine: dict[str, str]) -> None:
        assert self.config is not None
        names = {m["device_name"] for m in self.machines} | {machine["device_name"]}
        if len(names) > 1 and not self.config.resources.allow_mixed:
            raise ConfigError(
                f"resources.allow_mixed: the cluster has {' and '.join(sorted(names))}, on which the same run has different "
                "bits; restrict the cluster to one of them, or set it to true"
            )

    def run(
        self,
        round: int,
        tasks: Sequence[Task],
        version: int,
        broadcast: ray.ObjectRef,
        ready: Callable[[Task, int], Task],
        report: Callable[[int, int, list[str]], None],
    ) -> Done:
        """Run tasks. ``ready`` makes a task ready for a worker of a node; ``report`` is told (done, total, what is running).

        Raises:
            StatesLost: a node that had a client's state is gone.
            ClientError: an algorithm raised, or clients kill their actors.
        """
        self.grow()
        return _Dispatch(self, round, tasks, version, broadcast, ready, report).run()

    def replace(self, worker: Worker) -> None:
        """Put a new actor in the place of one that was lost, to be ready for the same run."""
        ray.kill(worker.handle)
        worker.handle, worker.running, worker.summed = self._start(), {}, []
        self._configure(worker)

    @property
    def several_nodes(self) -> bool:
        """Whether workers are on more nodes than one."""
        return len({worker.node for worker in self.workers}) > 1

    def last_words(self, worker: Worker) -> str:
        """The end of the log of a worker that was lost."""
        assert self._states is not None
        return self._states.log(worker.node, worker.machine["log"]) if worker.machine is not None else ""

    def wait(self, refs: list[ray.ObjectRef], timeout: float = 0.5) -> list[ray.ObjectRef]:
        """Those that are ready, maybe none; raises ``Stopped`` when asked to."""
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        if not ready:
            ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if self._stop.is_set():
            raise Stopped
        return ready

    def close(self) -> None:
        """End all actors, so that others can use what they have."""
        for worker in self.workers:
            ray.kill(worker.handle)
        self.workers = []


class _Dispatch:
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
