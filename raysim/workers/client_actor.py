"""The client actor: a Ray worker with its share of a device that hosts one client batch after another.

A thin wrapper around ``training/engine.py``: it moves data in and out of the object store and the slot files, and keeps the
one thing that is mutable, the partial sum of the round.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raysim.config.fingerprint import algorithm_digest
from raysim.data.loading import mapped_images
from raysim.errors import BrokenDevice, ClientError, OutOfDeviceMemory, StatesLost
from raysim.functional.optimizers import Tensors
from raysim.own_code import OwnCode
from raysim.training.aggregation import PartialSum, merged
from raysim.training.device_errors import is_broken_device, is_out_of_memory
from raysim.training.engine import ClientEngine
from raysim.training.evaluation import Evaluation
from raysim.training.tasks import BEFORE, Evaluate, EvaluateGlobal, Task, TaskResult, Train, TrainingReport
from raysim.workers.device import device_name, keep_freed_memory, make_cuda_deterministic
from raysim.workers.ray_private import stderr_of_worker
from raysim.workers.remote_states import States
from raysim.workers.run_setup import Machine, RunSetup


@ray.remote(max_restarts=0, max_task_retries=0)
class ClientActor:
    """Configured once per run, then handed tasks; never restarted by Ray, since its partial sum would be lost silently.

    Args:
        code: where a user's own code is.
    """

    def __init__(self, code: OwnCode) -> None:
        code.install()
        import timm  # noqa: F401  # needed by the first model; the driver prepares the run meanwhile

        keep_freed_memory()
        torch.set_num_threads(1)  # two threads add in another order than one, whatever num_cpus is
        self._engine: ClientEngine | None = None
        self._states: States | None = None
        self._broadcast: tuple[int, Tensors] | None = None

    def ping(self) -> None:
        """Returns at once; the answer shows that Ray has placed the actor."""

    def configure(self, setup: RunSetup) -> Machine:
        """Get ready for a run; returns what this worker computes on."""
        self._engine = self._broadcast = None  # the previous run's model and data may still be on the GPU,
        gc.collect()  # kept alive by an error's traceback
        try:
            self._engine = make_engine(setup)
        except Exception as error:
            if is_broken_device(error):
                raise BrokenDevice(f"getting ready: {error}") from error
            raise
        self._partial = PartialSum(-1)
        device, context = setup.config.resources.device, ray.get_runtime_context()
        return Machine(
            device,
            device_name(device),
            algorithm_digest(setup.config),
            context.get_node_id(),
            os.getpid(),
            stderr_of_worker(),
            ",".join(context.get_accelerator_ids().get("GPU", [])),
        )

    def open_states(self, node: int, path: Path) -> None:
        """Open the personal states of the run: this node's number and its slot file."""
        assert self._engine is not None
        if self._states is not None:
            self._states.close()
        self._states = States(node, path, self._engine.state_layout.size)

    def set_readers(self, readers: dict[int, Any]) -> None:
        """Take note of the readers of all nodes that have states by now."""
        assert self._states is not None
        self._states.readers = readers

    def run(self, task: Task, version: int, broadcast: dict[str, NDArray[np.float32]]) -> TaskResult:
        """Do a task with the server's broadcast of this version (equal versions are equal broadcasts).

        Raises:
            ClientError: the algorithm raised; names the client.
            BrokenDevice: this process can't use its GPU any more.
            StatesLost: a node that has a state of one of the clients is gone.
        """
        start, now = time.perf_counter(), time.time()
        tensors = self._on_device(version, broadcast)
        try:
            outcome = self._outcome(task, tensors)
        except StatesLost:
            raise
        except Exception as error:
            if is_broken_device(error):
                raise BrokenDevice(f"{task.kind} of clients {task.clients.tolist()}: {error}") from error
            failure = error
        else:
            # Without the messages, which may be as large as models: the driver needs them no more.
            return TaskResult(replace(task, messages={}), outcome, now, time.perf_counter() - start)
        raise self._client_error(task, tensors, failure)

    def partial_sum(self, round: int) -> PartialSum:
        """The sum of the client batches that this actor trained in the round."""
        return self._partial if self._partial.round == round else PartialSum(round)

    def merged(self, round: int, *parts: PartialSum) -> PartialSum:
        """The partial sums of several actors as one; Ray passes them from actor to actor."""
        return merged(parts, round)

    def _on_device(self, version: int, broadcast: dict[str, NDArray[np.float32]]) -> Tensors:
        assert self._engine is not None
        if self._broadcast is None or self._broadcast[0] != version:
            # A copy: torch ignores that an array in shared memory is read-only.
            tensors = {k: torch.from_numpy(v.copy()).to(self._engine.device) for k, v in broadcast.items()}
            self._broadcast = (version, tensors)
        return self._broadcast[1]

    def _outcome(self, task: Task, broadcast: Tensors) -> TrainingReport | Evaluation:
        assert self._engine is not None
        assert self._states is not None
        computed = task.compute(self._engine, broadcast, self._states_for(task))
        if isinstance(computed, Evaluation):
            return computed
        assert isinstance(task, Train)
        if task.write is not None:
            self._states.write(task.write, computed.states)
        if self._partial.round != task.round:
            self._partial = PartialSum(task.round)
        self._partial.add(task.index, computed.sums, computed.uploads)
        return TrainingReport.of(computed)

    def _states_for(self, task: Task) -> NDArray[np.float32]:
        """The states (K, size) of a task's clients; without entries if it needs none: they may lie on another node."""
        assert self._engine is not None
        assert self._states is not None
        if not task.reads_states or (isinstance(task, Evaluate) and self._engine.evaluates_one_model()):
            return np.empty((len(task.clients), 0), np.float32)
        return self._states.read(task.read, self._engine.initial_state)

    def _client_error(self, task: Task, broadcast: Tensors, error: Exception) -> ClientError:
        """Name the client: in a vectorised batch, the first one that fails on its own."""
        culprits = task.clients.tolist()
        # That there is no room says nothing about a client.
        if len(culprits) > 1 and not isinstance(task, EvaluateGlobal) and not is_out_of_memory(error):
            for i, client in enumerate(culprits):
                if (alone := self._error_alone(task.of_one(i), broadcast)) is not None:
                    if is_broken_device(alone):
                        raise BrokenDevice(f"{task.kind} of client {client}: {alone}") from alone
                    culprits, error = [client], alone
                    break
        kind = ClientError
        who = f"client {culprits[0]}" if len(culprits) == 1 else f"clients {', '.join(map(str, culprits))}"
        hint = ""
        if is_out_of_memory(error):
            kind = OutOfDeviceMemory
            hint = "\nThe device is out of memory: lower resources.clients_per_batch, or give each actor a larger share of it"
        trace = "".join(traceback.format_exception(error))
        when = f"in round {task.round}" if task.round != BEFORE else "before the first round"
        return kind(f"{task.kind} of {who} failed {when}: {error!r}{hint}\n\n{trace}")

    def _error_alone(self, task: Task, broadcast: Tensors) -> Exception | None:
        """What a task of one client raises, with no effect on slots or sums."""
        assert self._engine is not None
        states = self._states_for(task)
        try:
            task.compute(self._engine, broadcast, states)
        except Exception as error:
            return error
        return None


def make_engine(setup: RunSetup) -> ClientEngine:
    """What a worker needs for a run, from the object store."""
    from raysim.models.build import build_model  # not at the top: the driver, too, would wait seconds for timm

    config = setup.config
    if config.resources.device == "cuda":
        make_cuda_deterministic(config.resources.precision == "tf32")
        torch.cuda.empty_cache()  # of the run before
    model = build_model(
        config.model.model_copy(update={"pretrained": False, "weights": None}),
        config.algorithm,
        setup.num_classes,
        setup.in_channels,
        config.seed,
        new=False,  # it was tried before the run was prepared
    )
    refs = [setup.images, setup.labels, setup.partition, setup.initial, setup.frozen]
    images, labels, partition, initial, frozen = ray.get(refs)
    if isinstance(images, str):
        images = mapped_images(setup.config, images, setup.images_digest)
    model.load_state_dict({name: torch.from_numpy(v.copy()) for name, v in frozen.items()}, strict=False)
    theta = torch.from_numpy(initial.copy())  # torch ignores that a shared array is read-only
    return ClientEngine(config, model, theta, images, labels, partition, config.resources.device)
