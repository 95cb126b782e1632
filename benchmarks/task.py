"""The work that every side does, bit for bit the same: which clients train in a round, on which samples, in which order.

Written by ``compare.py`` to a folder, read by the processes of every side; needs torch, timm and NumPy, not raysim.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """What is the same in all rounds: one local epoch of plain SGD per client and round, equal sizes, FedAvg.

    Attributes:
        rounds: all of them, the warm-up round included.
        processes: that a side may compute with, one thread each.
    """

    workload: str
    rounds: int
    num_clients: int
    cohort: int
    batch_size: int
    learning_rate: float
    num_classes: int
    side: int
    model: dict[str, Any]
    processes: int


@dataclass(frozen=True)
class Task:
    """The settings with their arrays.

    Attributes:
        images: (N, H, W, C) of bytes; labels: (N,).
        train: (R, K, n) indices of the samples of each round and client of its cohort, in the order of training.
        test: (R, K, m) the same for evaluation.
        initial: the parameters that round 0 starts with, by their names in timm's model.
    """

    settings: Settings
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    train: NDArray[np.int64]
    test: NDArray[np.int64]
    initial: dict[str, Tensor]

    def save(self, folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps(asdict(self.settings)))
        for name in ("images", "labels", "train", "test"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        save_file(self.initial, folder / "initial.safetensors")

    @staticmethod
    def load(folder: Path) -> Task:
        """Images and labels stay in the file, and all processes of a machine share them."""
        settings = Settings(**json.loads((folder / "settings.json").read_text()))
        arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("images", "labels", "train", "test")
        }
        return Task(settings, **arrays, initial=load_file(folder / "initial.safetensors"))

    def model(self) -> nn.Module:
        s = self.settings
        model: nn.Module = timm.create_model(
            "vit_tiny_patch16_224", img_size=s.side, num_classes=s.num_classes, **s.model
        )
        model.load_state_dict(self.initial)
        return model

    def samples(self, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) between -1 and 1, and labels (B,)."""
        images = torch.from_numpy(self.images[index]).permute(0, 3, 1, 2).float().mul_(2 / 255).sub_(1)
        return images, torch.from_numpy(self.labels[index])
