"""A pool of client actors: how they are started, prepared for a run, replaced and ended; the one place with ``ray.wait``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayTaskError

from raysim.config.schema import Config
from raysim.errors import BrokenDevice, ConfigError, Stopped, WorkersLost
from raysim.own_code import OwnCode
from raysim.training.tasks import Task
from raysim.workers.client_actor import ClientActor
from raysim.workers.durations_and_timeouts import TaskDurations
from raysim.workers.remote_states import StateNodes
from raysim.workers.run_setup import Machine, RunSetup
from raysim.workers.worker import ACTOR_LOST, Worker

log = logging.getLogger(__name__)

CONFIGURE_SECONDS = 900.0  # for a placed actor to get the data and build the model, after which it is considered hung
DECODE_SECONDS = 24 * 3600.0  # the same where a node may have to decode a data set that is larger than memory
MAX_STARTS = 4  # failed starts of an actor in a row, after which the run ends
GATHER_SECONDS = 5e-5  # for each result that is waited for: how long to let others arrive before looking at them
PATIENCE_SECONDS = 60  # how long to wait for Ray to place an actor before telling the user


class ActorPool:
    """Client actors, each with the same resources, on as many nodes as Ray places them on.

    Args:
        size: gives the number of actors that the cluster has room for now; asked at the start and when a node joins.
        options: Ray's options of an actor (``num_cpus``, ``num_gpus``).
        code: where a user's own code is.
        stop: set by the driver to end a run; ``Stopped`` is raised then.
        notify: shows the user a message.
        workers: existing workers that ``split`` hands over.
    """

    def __init__(
        self,
        size: Callable[[], int],
        options: dict[str, Any],
        code: OwnCode,
        stop: threading.Event,
        notify: Callable[[str], None],
        workers: Sequence[Worker] = (),
    ) -> None:
        self._size, self._options, self._code = size, options, code
        self._stop, self.notify = stop, notify
        self.workers: list[Worker] = [replace(worker, number=i) for i, worker in enumerate(workers)]
        self._setup: ray.ObjectRef | None = None
        self._answers: dict[ray.ObjectRef, Worker] = {}  # the pending ones to ``configure``
        self._num_readers = 0  # that all ready workers know
        self._states: StateNodes | None = None
        self._nodes: set[str] = set()
        self.config: Config | None = None
        self.durations = TaskDurations()
        self.grow()

    def grow(self) -> None:
        """Start more actors if nodes have joined since the last call."""
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
                log.warning("a node has joined: actor %d is added", worker.number)

    def _start(self) -> Any:
        actor_class: Any = ClientActor  # Ray's decorator adds `options`
        return actor_class.options(**self._options).remote(self._code)

    def split(self, pools: int) -> list[ActorPool]:
        """Pools of ``size`` actors each, of which this is the first; actors that are left over end."""
        size = max(1, self._size())
        self.workers, others = self.workers[:size], self.workers[size:]
        result = [self]
        for i in range(pools - 1):
            given = others[i * size : (i + 1) * size]
            result.append(ActorPool(self._size, self._options, self._code, self._stop, self.notify, given))
        for worker in others[(pools - 1) * size :]:
            ray.kill(worker.handle)
        return result

    @property
    def ready(self) -> list[Worker]:
        """The workers that can run tasks."""
        return [worker for worker in self.workers if worker.machine is not None]

    @property
    def several_nodes(self) -> bool:
        """Whether workers are on more than one node."""
        return len({worker.node for worker in self.workers}) > 1

    # Getting ready for a run.

    def configure(self, setup: RunSetup, states: StateNodes) -> Machine:
        """Get every actor ready for a run; returns what they compute on.

        If Ray can't place some actors yet, because others use the cluster, it waits for them and says so; after a
        minute the run starts with those that are ready.

        Raises:
            ConfigError: the actors compute on different kinds of machines, or imported another source of the algorithm.
            ClientError: actors can't be started.
            Stopped: the run is to end.
        """
        self._setup, self._states, self.config = ray.put(setup), states, setup.config
        self._decodes = bool(setup.images_digest)
        self._digest, self.durations = setup.algorithm_digest, TaskDurations()
        self._num_readers = 0
        for worker in self.workers:
            self._configure(worker)
        patience = time.monotonic() + PATIENCE_SECONDS
        while refs := self.pending_answers:
            if time.monotonic() > patience:
                ready = len(self.ready)
                then = f"; the run starts with {ready}" if ready else ""
                self.notify(
                    f"waiting for Ray to start {len(refs)} of {len(self.workers)} actors: is the cluster busy?{then}"
                )
                if ready:
                    break
                patience = time.monotonic() + PATIENCE_SECONDS
            for ref in self.wait(refs, timeout=1.0):
                self.take_answer(ref)
            self.replace_hung()
        machine = self.ready[0].machine
        assert machine is not None
        return machine

    @property
    def pending_answers(self) -> list[ray.ObjectRef]:
        """The pending answers of actors that are getting ready."""
        return list(self._answers)

    def _configure(self, worker: Worker) -> None:
        """A worker starts to get ready; what it was asked before is of no interest any more."""
        if worker.answer is not None:
            self._answers.pop(worker.answer, None)
        self._answers[worker.configure(self._setup)] = worker

    def take_answer(self, ref: ray.ObjectRef) -> bool:
        """Take the answer of an actor to ``configure``; returns whether ``ref`` was one. Raises as ``configure`` does."""
        if (worker := self._answers.pop(ref, None)) is None:
            return False
        assert self._states is not None
        try:
            machine: Machine = ray.get(ref)
            self._check_same_kind(machine)
            self._check_same_source(machine)
            node, path, readers = self._states.at(self._states.number(machine.node))
            worker.handle.open_states.remote(node, path)
            worker.ready(machine, node)
            self._announce(readers, worker)
        except ACTOR_LOST as error:
            self._start_failed(worker, error)
        except RayTaskError as error:
            if not isinstance(error.cause, BrokenDevice):
                raise
            self._start_failed(worker, error.cause)
        return True

    def replace_hung(self) -> None:
        """Replace actors that Ray has placed but that don't get ready."""
        assert self.config is not None
        asked = self.config.resources.client_timeout
        if self._decodes:
            asked = DECODE_SECONDS
        limit = CONFIGURE_SECONDS if asked == "auto" else max(PATIENCE_SECONDS, asked)
        for worker in self.workers:
            if worker.seconds_getting_ready() > limit:
                self._start_failed(worker, TimeoutError(f"it did not get ready in {limit:g} seconds"))

    def _start_failed(self, worker: Worker, error: Exception) -> None:
        if worker.start_failed() >= MAX_STARTS:
            raise WorkersLost(f"client actor {worker.number} can't be started: {error}") from error
        log.warning("client actor %d did not start (%s); another takes its place", worker.number, error)
        self.replace(worker)

    def _announce(self, readers: dict[int, Any], new: Worker) -> None:
        """Tell a new worker about all readers, and all others if there is one that they don't know.

        An actor's calls run in order, so it knows them before its next task.
        """
        for worker in self.ready if len(readers) > self._num_readers else [new] if readers else []:
            worker.handle.set_readers.remote(readers)
        self._num_readers = len(readers)

    def _check_same_kind(self, machine: Machine) -> None:
        assert self.config is not None
        other = next((worker.machine for worker in self.workers if worker.machine is not None), machine)
        names = {other.device_name, machine.device_name}
        if len(names) > 1 and not self.config.resources.allow_mixed:
            raise ConfigError(
                f"resources.allow_mixed: the cluster has {' and '.join(sorted(names))}, on which the same run has different "
                "bits; restrict the cluster to one of them, or set it to true"
            )

    def _check_same_source(self, machine: Machine) -> None:
        if machine.algorithm_digest != self._digest:
            raise ConfigError(
                "algorithm: its source was changed while the run is under way, and an actor that was started now would train "
                "with the new source; restore the old one and resume the run, or start it over"
            )

    # While tasks run (dispatch.py).

    def replace(self, worker: Worker) -> list[Task]:
        """Put a new actor in the place of one that was lost; returns the tasks that must run again."""
        ray.kill(worker.handle)
        again = worker.restart(self._start())
        self._configure(worker)
        return again

    def log_tail(self, worker: Worker) -> str:
        """The end of the log of a worker that was lost."""
        assert self._states is not None
        return self._states.log(worker.node, worker.machine.log) if worker.machine is not None else ""

    def wait(self, refs: list[ray.ObjectRef], timeout: float = 0.5) -> list[ray.ObjectRef]:
        """The refs that are ready, maybe none; raises ``Stopped`` when the run is to end."""
        # To look at thousands of refs takes a while: let more of them get ready meanwhile.
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=GATHER_SECONDS * len(refs))
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
