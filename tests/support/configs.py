"""A configuration that trains in a second, from which tests start."""

from __future__ import annotations

from typing import Any

from raysim.config.overrides import merge
from raysim.config.schema import Config

TINY: dict[str, Any] = {
    "name": "tiny",
    "rounds": 2,
    "data": {
        "name": "digits",
        "subset": 400,
        "num_clients": 8,
        "partition": {"name": "dirichlet", "alpha": 0.5, "min_samples": 12},
    },
    "model": {"image_size": 8, "kwargs": {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}},
    "algorithm": {"name": "fedperfix", "mid_dim": 4},
    "train": {"local_epochs": 2, "batch_size": 8, "optimizer": {"lr": 0.1}},
    "cohort": {"fraction": 0.5},
    "resources": {"num_actors": 2, "clients_per_batch": 2},
}


def tiny(**changes: Any) -> Config:
    """A configuration that trains in a second; ``changes`` are merged into it as a study entry would be."""
    return Config.model_validate(merge(TINY, changes, entry=True))
