"""The workloads of ``raysim bench``, on images that they make themselves: only the shapes matter, not what is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raysim.config import Config
from raysim.data.partitions import Partition
from raysim.data.sources import Dataset

NUM_CLASSES = 10
# Clients draw their samples from so many images, with repetition: memory is not what these workloads are about.
NUM_IMAGES = 20_000


@dataclass(frozen=True)
class Workload:
    """So many clients of equal size, and the model that they train for one local epoch of SGD.

    Attributes:
        cohort: clients that train in a round, and are then evaluated.
        num_train, num_test: samples of each client.
        side: of the images and of the model's input, in pixels.
        model: arguments of timm's constructor.
    """

    name: str
    num_clients: int
    cohort: int
    num_train: int
    num_test: int
    batch_size: int
    side: int
    model: dict[str, Any]

    def config(self, algorithm: dict[str, Any], rounds: int, resources: dict[str, Any]) -> Config:
        return Config.model_validate(
            {
                "name": f"bench-{self.name}",
                "rounds": rounds,
                "data": {"name": "npz", "root": "made-by-bench", "num_clients": self.num_clients},
                "model": {"name": "vit_tiny_patch16_224", "image_size": self.side, "kwargs": self.model},
                "algorithm": algorithm,
                "train": {"batch_size": self.batch_size, "optimizer": {"lr": 0.01}},
                "cohort": {"size": self.cohort},
                "evaluate": {"clients": "cohort"},
                "resources": resources,
            }
        )

    def dataset(self) -> Dataset:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (NUM_IMAGES, self.side, self.side, 3), np.uint8)
        labels = rng.integers(0, NUM_CLASSES, NUM_IMAGES)
        return Dataset(images, labels, tuple(map(str, range(NUM_CLASSES))))

    def partition(self) -> Partition:
        each = self.num_train + self.num_test
        indices = np.random.default_rng(1).integers(0, NUM_IMAGES, self.num_clients * each)
        offsets = np.arange(self.num_clients + 1) * each
        return Partition(indices, offsets, np.full(self.num_clients, self.num_train))


HEAVY = Workload("heavy", 100, 20, 80, 20, 20, 32, {"patch_size": 4, "embed_dim": 192, "depth": 4, "num_heads": 3})
MANY = Workload("many", 10_000, 1_000, 8, 2, 8, 16, {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2})
