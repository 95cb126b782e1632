"""How much memory a training step takes on a GPU, and how many clients and actors fit there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.training.aggregation import Weights
from raysim.training.algorithm_server import AlgorithmServer
from raysim.training.device_errors import is_out_of_memory
from raysim.training.engine import ClientEngine
from raysim.training.local_training import LocalTraining
from raysim.training.sensitivity import measurable

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


def choose(
    peak_bytes: Callable[[int], int | None], total_bytes: int, cohort: int, batches: int, asked: int | None = None
) -> Choice:
    """The largest power of two of clients whose peak fits and, if the cohort allows, leaves so many batches per round.

    Args:
        peak_bytes: gives the peak memory of a training step with this many clients, None if it did not fit.
        total_bytes: the GPU's memory.
        asked: ``clients_per_batch``, if it is given.
    """
    size, peak = 1, peak_bytes(1)
    most = min(MOST_CLIENTS_PER_BATCH, max(1, cohort // batches), asked or MOST_CLIENTS_PER_BATCH)
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


def peak_bytes(engine: ClientEngine, num_clients: int) -> int | None:
    """The most memory that a training step and evaluation of the largest clients take on the engine's GPU."""
    largest = np.argsort(-engine.partition.num_train, kind="stable")[:num_clients]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        trial_step(engine, largest)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return None
        raise
    return int(torch.cuda.max_memory_reserved())  # what the GPU has given away, used or in gaps between what is used


def trial_step(engine: ClientEngine, clients: NDArray[np.int64]) -> None:
    """Train clients (K,) for one local step and evaluate them, with no effect; runs on any device."""
    equal = Weights(np.ones(len(clients), np.int64), len(clients))
    samples = engine.partition.num_train[: engine.config.data.num_clients]
    server = AlgorithmServer(engine.config, engine.layout, engine.initial, samples)
    broadcast = {name: tensor.to(engine.device) for name, tensor in server.sent().items()}
    states = np.tile(engine.initial_state, (len(clients), 1))
    messages = {name: m.to(engine.device) for name, m in server.messages(0, clients).items()}
    weights = {"samples": equal, "uniform": equal}
    epochs = engine.config.train.local_epochs
    sensitivity = measurable(engine.algorithm.uploads["shared"])
    training = LocalTraining(0, clients, weights, epochs, messages, sensitivity=sensitivity, steps_per_epoch=1)
    engine.train(training, broadcast, states)
