"""The client actor: a Ray worker with its share of a device that hosts one client batch after another.

A thin wrapper around ``training.ClientEngine``: it moves data in and out of the object store and the slot files, and keeps
the one thing that is mutable, the partial sum of the round.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch

from raysim.training.aggregation import PartialSum
from raysim.errors import ClientError, OutOfDeviceMemory, StatesLost
from raysim.workers.node_states import States
from raysim.functional.optimizers import Tensors
from raysim.training.tasks import RunSetup, Task, TaskResult, algorithm_code

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raysim.training.engine import ClientEngine

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


@ray.remote(max_restarts=0, max_task_retries=0)
class ClientActor:
    """Configured once per run, then handed tasks; never restarted by Ray, since its partial sum would be lost silently."""

    def __init__(self, import_path: list[str]) -> None:
        sys.path.extend(entry for entry in import_path if entry not in sys.path)  # a user's own algorithm module
        _keep_freed_memory()
        torch.set_num_threads(1)  # two threads add in another order than one, whatever num_cpus is
        self._engine: ClientEngine | None = None
        self._states: States | None = None
        self._broadcast: tuple[Any, Tensors] | None = None

    def is_there(self) -> None:
        """Answered as soon as the actor runs."""

    def configure(self, setup: RunSetup) -> dict[str, str]:
        """Get ready for a run; returns what this worker computes on, and its process."""
        self._engine = self._broadcast = None  # of the run before: its model and data may lie on the GPU,
        gc.collect()  # held by an error's traceback
        self._engine = make_engine(setup)
        self._partial = PartialSum(-1)
        device = setup.config.resources.device
        return {
            "device": device,
            "device_name": device_name(device),
            "code": algorithm_code(setup.config),
            "pid": str(os.getpid()),
            "node": ray.get_runtime_context().get_node_id(),
            "log": ray._private.worker.global_worker.get_err_file_path(),
        }

    def open_states(self, node: int, path: Path) -> None:
        """The personal states of the run: this node's number and its slot file."""
        assert self._engine is not None
        if self._states is not None:
            self._states.close()
        self._states = States(node, path, self._engine.state_layout.size)

    def know(self, readers: dict[int, Any]) -> None:
        """The readers of all nodes that have states by now."""
        assert self._states is not None
        self._states.readers = readers

    def run(self, task: Task, version: int, broadcast: dict[str, NDArray[np.float32]]) -> TaskResult:
        """Do a task with the server's broadcast of this version (equal versions are equal broadcasts).

        Raises:
            ClientError: the algorithm raised; names the client.
            StatesLost: a node that has a state of one of the clients is gone.
        """
        start, now = time.perf_counter(), time.time()
        assert self._engine is not None
        assert self._states is not None
        if self._broadcast is None or self._broadcast[0] != version:
            tensors = {k: torch.from_numpy(v.copy()).to(self._engine.device) for k, v in broadcast.items()}
            self._broadcast = (version, tensors)
        if self._partial.round != task.round and task.kind == "train":
            self._partial = PartialSum(task.round)
        try:
            return TaskResult(task, *self._run(task), now, time.perf_counter() - start)
        except StatesLost:
            raise
        except Exception as error:
            failure = error
        raise self._client_error(task, failure)

    def partial_sum(self, round: int) -> PartialSum:
        """The sum of the client batches that this actor trained in the round."""
        return self._partial if self._partial.round == round else PartialSum(round)

    def _run(self, task: Task) -> tuple[Any, Any, Any, Any]:
        assert self._engine is not None
        assert self._states is not None
        assert self._broadcast is not None
        _, broadcast = self._broadcast
        if task.kind == "global":
            return None, {}, {}, self._engine.evaluate_global(task.round, task.clients, broadcast)
        states = self._states.read(task.read, self._engine.initial_state)
        if task.kind in ("evaluate", "unadapted"):
            return None, {}, {}, self._engine.evaluate(task.round, task.clients, broadcast, states)
        assert task.weights is not None
        messages = {k: torch.from_numpy(v).to(self._engine.device) for k, v in (task.messages or {}).items()}
        trained = self._engine.train(
            task.round,
            task.clients,
            task.weights,
            broadcast,
            states,
            messages,
            task.evaluate,
            sensitivity=task.kind == "train" and task.pooled is None,
            pooled=task.pooled,
            work=task.work,
            newcomers=task.kind == "adapted",
        )
        if task.kind == "adapted":
            return None, {}, {}, trained.evaluation
        assert task.write is not None
        self._states.write(task.write, trained.states)
        self._partial.add(task.index, trained.sums)
        return trained.accepted, trained.metrics, trained.squared_updates, trained.evaluation

    def _client_error(self, task: Task, error: Exception) -> ClientError:
        """Name the client: in a vectorised batch, the first one that fails on its own."""
        culprits = task.clients.tolist()
        # An error of the device says nothing of a client.
        is_device_error = isinstance(error, torch.OutOfMemoryError) or "CUDA error" in str(error)
        if len(culprits) > 1 and task.kind != "global" and not is_device_error:
            for i, client in enumerate(culprits):
                if (alone := self._error_alone(task, i)) is not None:
                    culprits, error = [client], alone
                    break
        kind = ClientError
        who = f"client {culprits[0]}" if len(culprits) == 1 else f"clients {', '.join(map(str, culprits))}"
        hint = ""
        if isinstance(error, torch.OutOfMemoryError):
            kind = OutOfDeviceMemory
            hint = "\nThe device is out of memory: lower resources.clients_per_batch, or give each actor a larger share of it"
        trace = "".join(traceback.format_exception(error))
        return kind(f"{task.kind} of {who} failed in round {task.round}: {error!r}{hint}\n\n{trace}")

    def _error_alone(self, task: Task, i: int) -> Exception | None:
        """What one client of a batch raises on its own, with no effect on slots or sums."""
        assert self._engine is not None
        assert self._states is not None
        assert self._broadcast is not None
        one = slice(i, i + 1)
        states = self._states.read(task.read[one], self._engine.initial_state)
        weights = {k: v[one] for k, v in (task.weights or {}).items()}
        messages = {k: torch.from_numpy(v[one]).to(self._engine.device) for k, v in (task.messages or {}).items()}
        try:
            if task.weights is not None:
                self._engine.train(
                    task.round, task.clients[one], weights, self._broadcast[1], states, messages, task.evaluate
                )
            else:
                self._engine.evaluate(task.round, task.clients[one], self._broadcast[1], states)
        except Exception as error:
            return error
        return None


def make_engine(setup: RunSetup) -> ClientEngine:
    """What a worker needs for a run, from the object store."""
    # Imported where it is used: the driver imports this module, too, and would wait seconds for timm.
    from raysim.models.build import build_model
    from raysim.training.engine import ClientEngine

    config = setup.config
    if config.resources.device == "cuda":
        _make_cuda_deterministic()
        torch.cuda.empty_cache()  # of the run before
    model = build_model(
        config.model.model_copy(update={"pretrained": False, "weights": None}),
        config.algorithm,
        setup.num_classes,
        setup.in_channels,
        config.seed,
    )
    refs = [setup.images, setup.labels, setup.partition, setup.initial, setup.frozen]
    images, labels, partition, initial, frozen = ray.get(refs)
    model.load_state_dict({name: torch.from_numpy(v.copy()) for name, v in frozen.items()}, strict=False)
    theta = torch.from_numpy(initial.copy())  # torch ignores that a shared array is read-only
    return ClientEngine(config, model, theta, images, labels, partition, config.resources.device)


# Functions of the module, not methods: Ray pickles an actor class by value, and torch.backends can't be pickled.
def device_name(device: str) -> str:
    """The GPU model or the CPU instruction set: results have equal bits where it is equal."""
    return torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: every step frees and asks again for the same large tensors.

    Given back to the system, each would come back as new pages, one fault per 4 kB; the more so with many processes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    for parameter, value in ((M_MMAP_THRESHOLD, 32 * 2**20), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(parameter, value)  # the threshold's largest value; what is larger is mapped as before


def _make_cuda_deterministic() -> None:
    """Equal bits on equal GPUs; ``CUBLAS_WORKSPACE_CONFIG`` is set in the actor's environment."""
    if not torch.cuda.is_available():
        raise RuntimeError("this worker sees no CUDA device; is torch built for CUDA and num_gpus_per_actor above 0?")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_mem_efficient_sdp(False)
