"""The workloads of ``raysim bench``, on made-up images: only the shapes matter, not what is learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raysim.data.dataset import Dataset
from raysim.data.partition import Partition

NUM_CLASSES = 10
# Clients draw their samples with repetition from this many images, since these workloads are not about memory.
NUM_IMAGES = 20_000


@dataclass(frozen=True)
class Workload:
    """A number of clients of equal size, and the model that they train for one local epoch of SGD.

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
    algorithm: dict[str, Any] = field(default_factory=lambda: {"name": "fedavg"})

    @property
    def raw(self) -> dict[str, Any]:
        """The configuration, as it would stand in a YAML file."""
        return {
            "name": f"bench-{self.name}",
            "data": {"name": "npz", "root": "made by the benchmark", "num_clients": self.num_clients},
            "model": {"name": "vit_tiny_patch16_224", "image_size": self.side, "kwargs": self.model},
            "algorithm": self.algorithm,
            "train": {"batch_size": self.batch_size, "optimizer": {"lr": 0.01}},
            "cohort": {"size": self.cohort},
            "evaluate": {"clients": "cohort"},
        }

    def dataset(self) -> Dataset:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (NUM_IMAGES, self.side, self.side, 3), np.uint8)
        labels = rng.integers(0, NUM_CLASSES, NUM_IMAGES)
        return Dataset(images, labels, tuple(map(str, range(NUM_CLASSES))))

    def partition(self, num_clients: int) -> Partition:
        each = self.num_train + self.num_test
        indices = np.random.default_rng(1).integers(0, NUM_IMAGES, num_clients * each)
        return Partition(indices, np.arange(num_clients + 1) * each, np.full(num_clients, self.num_train))


_SMALL_VIT = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}
WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "heavy",
            num_clients=100,
            cohort=20,
            num_train=80,
            num_test=20,
            batch_size=20,
            side=32,
            model={"patch_size": 4, "embed_dim": 192, "depth": 4, "num_heads": 3},
        ),
        Workload(
            "many",
            num_clients=10_000,
            cohort=1_000,
            num_train=8,
            num_test=2,
            batch_size=8,
            side=16,
            model=_SMALL_VIT,
        ),
        Workload(
            "clients",
            num_clients=100_000,
            cohort=1_000,
            num_train=8,
            num_test=2,
            batch_size=8,
            side=16,
            model=_SMALL_VIT,
            algorithm={"name": "fedperfix", "mid_dim": 30},  # 50 kB of personal state for each client
        ),
    )
}
