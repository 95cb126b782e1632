"""Resolves ``clients_per_batch: auto`` and ``num_gpus_per_actor: auto`` on a GPU, by the memory of a trial step.

The choice is made once, before round 0, and written into the resolved configuration; rerunning that gives the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raysim.training.aggregation import Weights
from raysim.training.engine import ClientEngine
from raysim.training.local_training import LocalTraining
from raysim.workers.client_actor import make_engine
from raysim.workers.run_setup import RunSetup

MOST_CLIENTS_PER_BATCH = 256
MOST_ACTORS_PER_GPU = 4
# The share of a GPU's memory for one client batch, which leaves room for four actors and for what torch keeps.
BATCH_SHARE = 0.2
USABLE_SHARE = 0.9
CONTEXT_BYTES = 600 * 2**20  # that a process takes on a GPU before it has computed anything


@dataclass(frozen=True)
class Choice:
    """What the trial decided."""

    clients_per_batch: int
    actors_per_gpu: int


def choose(peak_bytes: Callable[[int], int | None], total_bytes: int, cohort: int, asked: int | None = None) -> Choice:
    """The largest power of two of clients whose peak fits and, if the cohort allows, leaves eight batches per round.

    Args:
        peak_bytes: gives the peak memory of a training step with this many clients, None if it did not fit.
        total_bytes: the GPU's memory.
        asked: ``clients_per_batch``, if it is given.
    """
    size, peak = 1, peak_bytes(1)
    most = min(MOST_CLIENTS_PER_BATCH, max(1, cohort // 8), asked or MOST_CLIENTS_PER_BATCH)
    while asked is None and peak is not None and 2 * size <= most:
        larger = peak_bytes(2 * size)
        if larger is None or larger > BATCH_SHARE * total_bytes:
            break
        size, peak = 2 * size, larger
    if asked is not None:
        size, peak = asked, peak_bytes(asked)
    if peak is None:
        return Choice(size, 1)  # the run itself will say what does not fit
    room = int(USABLE_SHARE * total_bytes / (peak + CONTEXT_BYTES))
    return Choice(size, max(1, min(MOST_ACTORS_PER_GPU, room)))


@ray.remote(max_restarts=0, max_task_retries=0)
class TrialActor:
    """Takes a whole GPU for the trial steps of a run, then ends."""

    def __init__(self, import_path: list[str]) -> None:
        sys.path.extend(entry for entry in import_path if entry not in sys.path)
        torch.set_num_threads(1)

    def choose(self, setup: RunSetup, asked: int | None) -> Choice:
        """The largest client batch that fits on this GPU, and how many actors (``choose``)."""
        engine = make_engine(setup)
        total = torch.cuda.get_device_properties(engine.device).total_memory
        return choose(lambda k: peak_bytes(engine, k), total, setup.config.cohort_size, asked)


def peak_bytes(engine: ClientEngine, num_clients: int) -> int | None:
    """The most memory that a training step and evaluation of the largest clients take on the engine's GPU."""
    largest = np.argsort(-engine.partition.num_train, kind="stable")[:num_clients]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        trial_step(engine, largest)
    except torch.OutOfMemoryError:
        return None
    return int(torch.cuda.max_memory_allocated())


def trial_step(engine: ClientEngine, clients: NDArray[np.int64]) -> None:
    """Train clients (K,) for one local step and evaluate them, with no effect; runs on any device."""
    equal = Weights(np.ones(len(clients), np.int64), len(clients))
    shared = engine.layout.split(engine.initial)[0]
    algorithm = engine.algorithm
    broadcast = algorithm.broadcast(shared, algorithm.server_init(shared, engine.layout))
    broadcast = {name: tensor.to(engine.device) for name, tensor in broadcast.items()}
    states = np.tile(engine.initial_state, (len(clients), 1))
    messages = {}
    if algorithm.reads_cohort_states:
        messages = algorithm.server_messages(engine.state_layout.unpack(torch.from_numpy(states)))
        messages = {name: m.to(engine.device) for name, m in messages.items()}
    weights = {"samples": equal, "uniform": equal}
    epochs = engine.config.train.local_epochs
    training = LocalTraining(0, clients, weights, epochs, messages, sensitivity=True, steps_per_epoch=1)
    engine.train(training, broadcast, states)
