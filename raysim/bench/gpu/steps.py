"""One step in this process: ``python -m raysim.bench.gpu.steps NAME DEVICE TINY SECONDS ROWS``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from raysim.bench.gpu.bench import Bench
from raysim.bench.gpu.checks import correctness, methods
from raysim.bench.gpu.processes import actors
from raysim.bench.gpu.speed import large, launches, memory, paper, small
from raysim.workers.device import fill_new_tensors, keep_freed_memory, make_cuda_deterministic

STEPS: dict[str, Callable[[Bench], None]] = {
    "correctness": correctness,
    "methods": methods,
    "actors": actors,
    "large": large,
    "small": small,
    "memory": memory,
    "launches": launches,
    "paper": paper,
}


def main() -> None:
    name, device, tiny, seconds, rows = sys.argv[1:]
    torch.set_num_threads(1)
    keep_freed_memory()
    if device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        make_cuda_deterministic()
        fill_new_tensors(name in ("correctness", "methods"))  # there a check sees what is never written
    STEPS[name](Bench(torch.device(device), tiny == "1", float(seconds), Path(rows)))


if __name__ == "__main__":
    main()
