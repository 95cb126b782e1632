"""A pool of client actors: how they are started, prepared for a run, replaced and ended; the one place with ``ray.wait``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray

from raysim.workers.client_actor import ClientActor
from raysim.config.schema import Config
from raysim.workers.task_durations import Costs
from raysim.workers.dispatch import ACTOR_LOST, PATIENCE_SECONDS, Dispatch, Done, Worker
from raysim.errors import ClientError, ConfigError
from raysim.workers.node_states import StateNodes
from raysim.training.tasks import RunSetup, Task

log = logging.getLogger(__name__)

CONFIGURE_SECONDS = 900.0  # for an actor that is there to get the data and build the model, before it is taken to hang
MAX_STARTS = 4  # in a row that an actor fails to start, after which starting is hopeless


class Stopped(Exception):
    """The run was asked to stop."""


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
        self._code = setup.code
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
            self.replace_hung()
        return self.machines[0]

    def _configure(self, worker: Worker) -> None:
        worker.machine, worker.begun, worker.there = None, None, worker.handle.is_there.remote()
        worker.configured = worker.handle.configure.remote(self._setup)

    def replace_hung(self) -> None:
        """Replace actors that are there but don't get ready; one that Ray could not place yet is not there."""
        assert self.config is not None
        asked = self.config.resources.client_timeout
        limit = CONFIGURE_SECONDS if asked == "auto" else max(PATIENCE_SECONDS, asked)
        for worker in self.workers:
            if worker.configured is None:
                continue
            if worker.begun is None and ray.wait([worker.there], num_returns=1, timeout=0)[0]:
                worker.begun = time.monotonic()
            elif worker.begun is not None and time.monotonic() - worker.begun > limit:
                self._failed_start(worker, TimeoutError(f"it did not get ready in {limit:g} seconds"))

    def settle(self, ref: ray.ObjectRef) -> bool:
        """Take the answer of an actor to ``configure``; returns whether it was one.

        Raises:
            ConfigError: the actors compute on different kinds of machines, or have other code.
            ClientError: actors can't be started.
        """
        worker = next((w for w in self.workers if w.configured is not None and w.configured == ref), None)
        if worker is None:
            return False
        assert self._states is not None
        try:
            machine: dict[str, str] = ray.get(ref)
            self._refuse_mixed(machine)
            self._refuse_other_code(machine)
            worker.node = self._states.number(machine["node"])
            node, path, readers = self._states.at(worker.node)
            worker.handle.open_states.remote(node, path)
            worker.configured, worker.machine, worker.failed_starts = None, machine, 0
            self._introduce(readers)
        except ACTOR_LOST as error:
            self._failed_start(worker, error)
        return True

    def _failed_start(self, worker: Worker, error: Exception) -> None:
        worker.failed_starts += 1
        if worker.failed_starts >= MAX_STARTS:
            raise ClientError(f"client actor {worker.name} can't be started: {error}") from error
        log.warning("client actor %d did not start (%s); another takes its place", worker.name, error)
        self.replace(worker)

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

    def _refuse_other_code(self, machine: dict[str, str]) -> None:
        if machine["code"] != self._code:
            raise ConfigError(
                "algorithm: its source was changed while the run is under way, and an actor that was started now would train "
                "by the new one; put the old source back and resume the run, or start it anew"
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
        return Dispatch(self, round, tasks, version, broadcast, ready, report).run()

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
