"""A whole run of what was defined in a script: method, data, partition and model."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np
import raysim
from raysim.algorithms.base import FederatedAlgorithm
from torch import nn

FACTOR = 0.5


def pull(x):
    return FACTOR * x


class Base(FederatedAlgorithm):
    pass  # what another cell would define


class Mine(Base):
    personal: list[str] = ["2"]
    mu: float = 0.1

    def client_step(self, carry, batch, ctx):
        gradient, loss = ctx.gradient(carry["theta"], batch)
        gradient = gradient + pull(self.mu) * ctx.drift(carry["theta"])
        theta, optimizer = ctx.optimizer.step(carry["theta"], gradient, carry["optimizer"])
        return {"theta": theta, "optimizer": optimizer}, {"loss": loss}


def data(config, *, side: int):
    labels = np.arange(200) % 2
    images = np.random.default_rng(0).integers(0, 100, (200, side, side, 1), np.uint8)
    images[labels == 1, ::2] += 100
    return raysim.Dataset(images, labels, ("noise", "stripes"))


def split(labels, domains, num_clients, rng):
    return np.array_split(rng.permutation(len(labels)), num_clients)


def turns(round, num_clients, size, rng):
    return (np.arange(size) + round) % num_clients


def surest(results, labels):
    return {"surest": results.probabilities.max()}


def model(num_classes: int, in_chans: int, img_size: int):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, 8), nn.Linear(8, num_classes))


if __name__ == "__main__":
    config = raysim.Config(
        name="mine", rounds=2, algorithm=Mine(mu=0.2),
        data={"name": "__main__:data", "options": {"side": 4}, "num_clients": 4, "partition": {"name": "__main__:split"}},
        model={"name": "__main__:model", "image_size": 4},
        train={"optimizer": {"lr": 0.1}},
        resources={"num_actors": 1},
        cohort={"size": 2, "sampling": "__main__:turns"}, evaluate={"metrics": ["__main__:surest"]},
    )
    result = raysim.run(config)
    assert result.history["round"].tolist() == [0, 1]
    assert result.history["aggregated/surest"].between(0, 1).all()
    more = raysim.resume(result.runs[0].run_id, ["rounds=3"])
    assert more.history["round"].tolist() == [0, 1, 2]
    FACTOR = 0.6
    try:
        raysim.resume(result.runs[0].run_id, ["rounds=4"])
    except (raysim.ConfigError, raysim.RunFailed) as error:
        print("REFUSED", error)
"""


@pytest.mark.slow
def test_what_a_script_defines_runs_and_can_be_resumed_from_it_until_its_source_changes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    run = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "REFUSED" in run.stdout
    assert "algorithm" in run.stdout.partition("REFUSED")[2]
    folder = next((tmp_path / "checkpoints").iterdir())
    elsewhere = subprocess.run(
        [sys.executable, "-m", "raysim", "resume", str(folder), "rounds=4"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert elsewhere.returncode == 2
    assert "was defined in a script or a notebook" in elsewhere.stderr
