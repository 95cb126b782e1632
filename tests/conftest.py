"""Shared by all tests: a tiny configuration, and one Ray cluster for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from raysim.config.schema import Config
from raysim.config.loading import _merge


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as in an actor, so that bits can be compared


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray cluster of four logical CPUs; ``raysim.run`` uses it."""
    ray.init(address="local", num_cpus=4, num_gpus=0, object_store_memory=200 * 2**20, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def quickstart(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with the store that a shorter quickstart filled, and its result."""
    import raysim

    folder = tmp_path_factory.mktemp("quickstart")
    file = Path(__file__).parent.parent / "yaml" / "quickstart.yaml"
    return folder, raysim.run(raysim.load_config(file, ["rounds=3", f"tracking.uri=sqlite:///{folder}/mlflow.db"]))


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
    return Config.model_validate(_merge(TINY, changes, entry=True))
