"""Shared by all tests: one Ray cluster for the whole session, a store that a short quickstart filled, the command."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from click.testing import CliRunner, Result
from filelock import FileLock


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as in an actor, so that bits can be compared


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded images of this session only; actors get the variable, too, for they are started later."""
    os.environ["RAYSIM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray cluster of four logical CPUs; ``raysim.run`` uses it."""
    ray.init(address="local", num_cpus=4, num_gpus=0, object_store_memory=200 * 2**20, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def quickstart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with the store that a shorter quickstart filled, and its result; run once for all of pytest-xdist."""
    import raysim

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "quickstart"
    kept = folder.with_suffix(".pickle")
    with FileLock(folder.with_suffix(".lock")):
        if not kept.exists():
            request.getfixturevalue("cluster")
            folder.mkdir()
            file = Path(__file__).parent.parent / "yaml" / "quickstart.yaml"
            changes = ["rounds=3", "resources.num_actors=2", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
            kept.write_bytes(pickle.dumps(raysim.run(raysim.load_config(file, changes))))
    return folder, pickle.loads(kept.read_bytes())


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command ``raysim`` in an empty folder, without this machine's settings; an exception other than an exit fails."""
    from raysim.cli import main

    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAYSIM_HOME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Result:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run
