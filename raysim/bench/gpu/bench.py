"""What every step has: a device, sizes, its time, made-up runs, and a file for its rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from raysim.bench.one_process import OneProcess
from raysim.config.loading import config_of
from raysim.config.overrides import merge
from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.models.build import build_model
from raysim.training.engine import layout_of

# A ViT for which launching operations takes longer than computing them.
SMALL: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "image_size": 16,
    "kwargs": {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2},
}
TINY = {
    "name": "vit_tiny_patch16_224",
    "image_size": 8,
    "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
VIT_S = {"name": "vit_small_patch16_224", "image_size": 224}


@dataclass
class Bench:
    """
    Attributes:
        tiny: a rehearsal with tiny sizes.
        seconds: that this step may take.
    """

    device: torch.device
    tiny: bool
    seconds: float
    rows: Path

    def __post_init__(self) -> None:
        self._begin = time.monotonic()

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def time_is_up(self, share: float = 0.8) -> bool:
        """Whether this share of the step's time is over."""
        return time.monotonic() - self._begin > share * self.seconds

    def emit(self, **row: Any) -> None:
        """Write a row; it is kept, whatever comes later."""
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def timed(self, function: Callable[[], Any], seconds: float = 2.0) -> float:
        """The median seconds of a call, after two to warm up; of at least three calls."""
        for _ in range(2):
            function()
        self.synchronize()
        took: list[float] = []
        while len(took) < 3 or (sum(took) < seconds and len(took) < 100 and not self.tiny):
            begin = time.perf_counter()
            function()
            self.synchronize()
            took.append(time.perf_counter() - begin)
        return median(took)

    def reserved(self) -> int:
        """Bytes that torch has taken of the GPU since ``reset``; 0 on a CPU."""
        return int(torch.cuda.max_memory_reserved()) if self.is_gpu else 0

    def reset(self) -> None:
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def made_up(
    device: str, model: dict[str, Any], clients: int, num_train: int, num_test: int, classes: int = 10, **changes: Any
) -> OneProcess:
    """A run on images that are made up, each class around an image of its own, with clients of equal size."""
    config = made_up_config(device, model, clients, **changes)
    side = config.model.image_size
    rng = np.random.default_rng(0)
    count = min(clients * (num_train + num_test), 1024)  # the rest are the same again
    labels = rng.integers(0, classes, count)
    images = rng.integers(0, 156, (classes, side, side, 3), np.uint8)[labels]
    images += rng.integers(0, 100, images.shape, np.uint8)
    indices = rng.integers(0, count, clients * (num_train + num_test))
    offsets = np.arange(clients + 1) * (num_train + num_test)
    partition = Partition(indices, offsets, np.full(clients, num_train))
    built = build_model(config.model, config.algorithm, classes, 3, config.seed)
    initial = layout_of(built, config.algorithm).flatten(built.state_dict())
    return OneProcess(config, built, initial, images, labels, partition, device)


def made_up_config(device: str, model: dict[str, Any], clients: int, **changes: Any) -> Config:
    share = 1.0 if device == "cuda" else 0.0
    base: dict[str, Any] = {
        "name": "bench-gpu",
        "rounds": 10,
        "data": {"name": "npz", "root": "made up", "num_clients": clients},
        "model": model,
        "algorithm": {"name": "fedavg"},
        "train": {"batch_size": 8, "optimizer": {"lr": 0.01}},
        "resources": {"device": device, "clients_per_batch": 1, "num_gpus_per_actor": share},
    }
    return config_of(merge(base, changes, entry=True), [], "bench gpu")
