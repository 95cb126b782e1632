"""``Worker``: what the driver knows about one client actor, changed only by its methods."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from raysim.training.tasks import Task, Train
from raysim.workers.run_setup import Machine

ACTOR_LOST = (
    RayActorError,
    ActorUnavailableError,  # the call may or may not have run, so the actor is given up
    ActorUnschedulableError,  # its node is gone
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    WorkerCrashedError,
)
"""What Ray raises when an actor is gone, as opposed to an error that was raised in it."""


@dataclass
class Worker:
    """A client actor: first it gets ready (``answer`` is pending), then it runs tasks, one after another.

    Attributes:
        number: its number in the pool, which it keeps when its actor is replaced.
        machine: what it computes on; None as long as it is not ready.
        node: number of its node among those that have personal states.
        answer: its pending call to ``configure``, or None.
        summed: the ``Train`` tasks of the round in its partial sum, which are lost with it.
        failed_starts: how many starts have failed in a row.
    """

    number: int
    handle: Any
    machine: Machine | None = None
    node: int = 0
    answer: ray.ObjectRef | None = None
    summed: list[Task] = field(default_factory=list)
    failed_starts: int = 0
    _running: dict[ray.ObjectRef, Task] = field(default_factory=dict)
    _since: float = 0.0
    _ping: ray.ObjectRef | None = None
    _alive_since: float | None = None

    # Getting ready.

    def configure(self, setup: ray.ObjectRef | None) -> ray.ObjectRef:
        """Start to get ready for a run; what is left of an earlier one is forgotten. Returns ``answer``."""
        self.machine, self._alive_since = None, None
        self._running, self.summed = {}, []
        self._ping = self.handle.ping.remote()
        self.answer = self.handle.configure.remote(setup)
        return self.answer

    def ready(self, machine: Machine, node: int) -> None:
        """The actor has answered ``configure``."""
        self.answer, self.machine, self.node, self.failed_starts = None, machine, node, 0

    def start_failed(self) -> int:
        """The actor did not get ready; returns how many starts have failed in a row."""
        self.failed_starts += 1
        return self.failed_starts

    def seconds_getting_ready(self) -> float:
        """Seconds since Ray placed the actor; 0 if it is ready already or not placed yet."""
        if self.answer is None:
            return 0.0
        if self._alive_since is None and ray.wait([self._ping], num_returns=1, timeout=0)[0]:
            self._alive_since = time.monotonic()
        return time.monotonic() - self._alive_since if self._alive_since is not None else 0.0

    # Running tasks.

    @property
    def running(self) -> list[Task]:
        """The tasks assigned to the actor, in the order in which it runs them; it is working on the first."""
        return list(self._running.values())

    @property
    def refs(self) -> list[ray.ObjectRef]:
        """The refs of the results of ``running``."""
        return list(self._running)

    @property
    def seconds_on_task(self) -> float:
        """Seconds since the first of ``running`` began."""
        return time.monotonic() - self._since if self._running else 0.0

    def assign(self, task: Task, version: int, broadcast: ray.ObjectRef) -> ray.ObjectRef:
        """Hand it a task, which it runs after those that it has; returns the ref of the result."""
        if not self._running:
            self._since = time.monotonic()
        ref = self.handle.run.remote(task, version, broadcast)
        self._running[ref] = replace(task, messages={})  # they may be as large as models, and are made anew for a retry
        return ref

    def finish(self, ref: ray.ObjectRef) -> Task:
        """A result has arrived: the task is done, and if it trained, it is in the actor's sum."""
        task = self._running.pop(ref)
        self._since = time.monotonic()
        if isinstance(task, Train):
            self.summed.append(task)
        return task

    def end_round(self) -> None:
        """Forget the tasks in the actor's sum, which was collected."""
        self.summed = []

    def restart(self, handle: Any) -> list[Task]:
        """Put another actor in the place of a lost one; returns the tasks that must run again."""
        again = [*self.running, *self.summed]
        self.handle, self._running, self.summed = handle, {}, []
        return again


def interleaved(workers: Sequence[Worker]) -> list[Worker]:
    """Workers that are ready, ordered so that the first few are on different GPUs and nodes.

    Ray places actors on one GPU after another. First comes one worker of each GPU, in turn from every node, then the
    second one of each; on CPUs one worker of each node.
    """
    nodes: dict[str, dict[str, int]] = {}  # of each node's GPUs, how many workers came before
    order = []
    for worker in workers:
        assert worker.machine is not None
        gpus = nodes.setdefault(worker.machine.node, {})
        before = gpus.setdefault(worker.machine.gpus, 0)
        order.append((before, list(gpus).index(worker.machine.gpus), worker.number, worker))
        gpus[worker.machine.gpus] = before + 1
    return [worker for *_, worker in sorted(order, key=lambda place: place[:3])]
