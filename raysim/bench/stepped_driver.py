"""A run of raysim that takes one round for each call, so that it can be measured beside something else."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import ray
import torch
from numpy.typing import NDArray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from raysim.bench.workloads import Workload
from raysim.config.loading import config_of
from raysim.config.locations import checkpoint_root, resolve_uri
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.events import RunListener
from raysim.experiments.launch import Launch
from raysim.experiments.listeners.checkpoints import CheckpointListener
from raysim.experiments.preparation import PreparedRun, prepare_run
from raysim.federation.rounds import FederatedRun
from raysim.own_code import OwnCode, own_code
from raysim.storage.folder import Folder
from raysim.storage.records import RoundRecord
from raysim.tracking.mlflow_store import MLflowStore
from raysim.tracking.outbox import Outbox
from raysim.tracking.round_journal import RunJournal
from raysim.workers.cluster import connect, using_ray
from raysim.workers.remote_states import StateNodes

log = logging.getLogger(__name__)
END_SECONDS = 30  # for a killed process to be gone


@ray.remote(max_restarts=0)
class SteppedDriver:
    """Does for one run what ``experiments/study.py`` does, with MLflow and checkpoints, but one round per call."""

    def __init__(self, prepared: list[ray.ObjectRef], uri: str, code: OwnCode) -> None:
        torch.set_num_threads(1)
        run: PreparedRun = ray.get(prepared[0])
        stop = threading.Event()
        launch = Launch(run.config, code, uri, stop, log.warning)
        self.config, (placed,), (self._pool,) = launch.place([run])
        config = placed.config
        self._states = StateNodes(placed.state_size)
        self._pool.configure(placed.setup, self._states)
        store, self._outbox = MLflowStore(uri, config.name), Outbox(log.warning, stop)
        self._journal = RunJournal(store, self._outbox, store.start(config.name, {}, {}), None, resumed=False)
        self._run = FederatedRun(placed.setup, placed.layout, self._pool, self._states)
        self._checkpoints = RunListener()
        if config.checkpoint.every is not None:
            folder = Folder(checkpoint_root(config.checkpoint, uri))
            self._checkpoints = CheckpointListener(folder, config.name, log.warning)
        self._checkpoints.rounds_begin(self._run, None)

    def resolved(self) -> Config:
        """The configuration with nothing left ``auto``."""
        return self.config

    def pids(self) -> list[int]:
        """The driver's process and those of its client actors."""
        machines = [worker.machine for worker in self._pool.ready]
        return [os.getpid(), *(machine.pid for machine in machines if machine is not None)]

    def round(self, round: int) -> list[tuple[int, dict[str, float]]]:
        """Run one round; returns (round, metrics) of each round that this completes."""
        assert round == self._run.next_round
        done = [event for event in self._run.round() if isinstance(event, RoundRecord)]
        for record in done:
            self._journal.add(record)
        self._checkpoints.between_rounds(self._run)
        return [(record.round, dict(record.metrics)) for record in done]

    def close(self) -> None:
        """Delete the temporary folders, once MLflow has everything: its database lies in one of them."""
        self._checkpoints.rounds_end()
        self._states.close()
        self._outbox.flush()

    def shared(self) -> NDArray[np.float32]:
        """(S,): the shared parameters after the rounds so far."""
        array: NDArray[np.float32] = self._run.shared.numpy()
        return array

    def kept(self) -> tuple[int, int]:
        """How many clients have a state by now, and its bytes: their own, and what the server keeps of them."""
        return len(self._run.states.trained), 4 * (self._run.states.layout.size + self._run.server_rows.layout.size)


@contextmanager
def driven(workload: Workload, overrides: Sequence[str], rounds: int) -> Iterator[Driven]:
    """A workload ready for its first round, with a store of its own that is deleted afterwards.

    Raises:
        ConfigError: an override is wrong, or the cluster can't give what it asks for.
    """
    with tempfile.TemporaryDirectory(prefix="raysim-bench-") as folder:
        store = f"tracking.uri=sqlite:///{folder}/mlflow.db"
        config = config_of(workload.raw, [store, *overrides, f"rounds={rounds}"], f"bench {workload.name}")

        def prepare() -> PreparedRun:
            return prepare_run(workload.name, config, workload.dataset(), workload.partition(config.data.num_clients))

        with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
            preparing = thread.submit(prepare)  # while Ray starts, which is mostly waiting
            stack.enter_context(using_ray(partial(connect, config.resources)))
            run = preparing.result()
            actor_class: Any = SteppedDriver
            uri = resolve_uri(config.tracking)
            actor = actor_class.options(num_cpus=0).remote([ray.put(run)], uri, own_code((), cloudpickle.dumps))
            try:
                resolved = ray.get(actor.resolved.remote())  # all actors are configured
                yield Driven(resolved, run, actor)
                ray.get(actor.close.remote())
            except RayTaskError as error:
                if isinstance(error.cause, ConfigError):
                    raise error.cause from error
                raise
            finally:
                _end(actor)


def _end(actor: Any) -> None:
    """Kill a driver and wait until its process is gone, which may still be writing to the store."""
    try:
        process = psutil.Process(ray.get(actor.pids.remote())[0])
    except (RayError, psutil.NoSuchProcess):  # it did not start, or has ended
        ray.kill(actor)
        return
    ray.kill(actor)
    process.wait(timeout=END_SECONDS)


@dataclass(frozen=True)
class Driven:
    """A ``SteppedDriver``, with its configuration and the run that it was started from."""

    config: Config
    """As the run has it, nothing left ``auto``."""
    run: PreparedRun
    actor: Any

    def round(self, round: int) -> tuple[float, list[dict[str, float]]]:
        """Run a round; returns the seconds it took, and the metrics of the rounds that it completes."""
        begin = perf_counter()
        done = ray.get(self.actor.round.remote(round))
        return perf_counter() - begin, [metrics for _, metrics in done]

    def processes(self) -> dict[str, list[int]]:
        pids = ray.get(self.actor.pids.remote())
        return {"driver": pids[:1], "actors": pids[1:]}
