"""Several processes on one GPU, as client actors are: the same bits for any number of them, and their speed."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from raysim.bench.gpu.bench import SMALL, TINY, VIT_S, Bench, made_up
from raysim.bench.gpu.checks import digest
from raysim.training.aggregation import PartialSum, Weights, combine
from raysim.training.algorithm_server import AlgorithmServer
from raysim.workers.device import keep_freed_memory, make_cuda_deterministic

ROUNDS = 3


def actors(bench: Bench) -> None:
    """FedAvg with 1, 2 and 4 processes on one GPU, twice each: bits and seconds per round.

    Raises:
        AssertionError: the bits are not the same.
    """
    small = (TINY, 8, 8, 2) if bench.tiny else (SMALL, 64, 32, 8)
    tasks: list[tuple[str, tuple[Any, ...]]] = [("small ViT", (*small, 16))]
    tasks += [] if bench.tiny else [("ViT-S/16 at 224", (VIT_S, 8, 128, 16, 64))]
    for label, task in tasks:
        digests = set()
        for count in (1, 2) if bench.tiny else (1, 2, 4):
            for attempt in (1,) if bench.tiny else (1, 2):
                if bench.time_is_up(0.9):
                    raise TimeoutError(f"no time for {label} with {count} processes, attempt {attempt}")
                bits, seconds = _run(bench.device.type, count, task)
                digests.add(bits)
                bench.emit(model=label, actors=count, attempt=attempt, seconds_per_round=seconds, bits=bits)
        assert len(digests) == 1, f"{label}: the bits differ: {sorted(digests)}"


def _run(device: str, count: int, task: tuple[Any, ...]) -> tuple[str, float]:
    """The bits after ``ROUNDS`` rounds, and the median seconds of a round, the first left out."""
    context = torch.multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, device, task), daemon=True)
        process.start()
        theirs.close()  # so that a process that died is an end of its pipe
        pipes.append(ours)
        processes.append(process)
    first, layout, config, clients = pipes[0].recv()
    for pipe in pipes[1:]:
        pipe.recv()
    size = max(1, clients // 8)
    groups = [np.arange(i, i + size) for i in range(0, clients, size)]
    server = AlgorithmServer(config, layout, torch.from_numpy(first), np.ones(clients, np.int64))
    seconds = []
    for round in range(ROUNDS):
        begin = time.perf_counter()
        for i, pipe in enumerate(pipes):
            # As an array: tensors would go through /dev/shm, which is small in containers.
            pipe.send((round, [(k, groups[k]) for k in range(i, len(groups), count)], server.shared.numpy()))
        parts: list[PartialSum] = [pipe.recv() for pipe in pipes]
        server.step(round, combine(parts, round, set(range(len(groups)))), np.arange(clients))
        seconds.append(time.perf_counter() - begin)
    for pipe in pipes:
        pipe.close()
    for process in processes:
        process.join()
    return digest(server.shared), float(np.median(seconds[1:]))


def _work(pipe: Connection, device: str, task: tuple[Any, ...]) -> None:
    """An actor: trains client batches with the parameters that it is sent, and returns its partial sum."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if device == "cuda":
        make_cuda_deterministic()
    model, clients, train, test, batch_size = task
    run = made_up(device, model, clients, train, test, train={"batch_size": batch_size})
    pipe.send((run.initial.numpy(), run.engine.layout, run.config, clients))
    while True:
        try:
            round, groups, shared = pipe.recv()
        except EOFError:
            return
        run.server.shared = torch.from_numpy(shared)
        part = PartialSum(round)
        for index, ids in groups:
            equal = Weights(np.ones(len(ids), np.int64), clients)
            part.add(index, run.train(round, ids, {"samples": equal, "uniform": equal}).sums)
        pipe.send(part)
