"""The benchmark does the work that it says, on both sides; no test asserts a time."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from raysim.bench import measure
from raysim.bench.workloads import WORKLOADS, Workload
from raysim.cli import main
from raysim.errors import ConfigError

MODEL = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMALL = Workload("small", 12, 6, num_train=5, num_test=3, batch_size=4, side=8, model=MODEL)


@pytest.fixture
def small(monkeypatch):
    for name in ("many", "clients"):
        monkeypatch.setitem(WORKLOADS, name, SMALL)
    monkeypatch.setattr(measure, "FEW_CLIENTS", 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm={name: fedavg}"],
        ["algorithm={name: fedperfix, mid_dim: 4}", "train.local_epochs=2", "train.optimizer.momentum=0.9"],
    ],
    ids=str,
)
def test_both_sides_arrive_at_the_same_model(cluster, overrides):
    figures = measure.against_plain_torch(SMALL, 3, ["resources.num_actors=2", *overrides], trimmed=True)
    assert figures["largest_difference"] < 1e-6
    assert figures["plain_is_trimmed"]
    assert len(figures["plain_seconds"]) == len(figures["raysim_seconds"]) == 3
    assert figures["ratio"] > 0
    assert 0 < figures["actor_busy_fraction"] < 1
    assert figures["object_store_bytes_per_round"] > 0
    assert figures["peak_private_mb"] > 100  # three processes with torch


@pytest.mark.slow
def test_the_command_writes_its_figures(cluster, small, tmp_path):
    file = tmp_path / "figures.json"
    options = ["--rounds", "2", "--actors", "1", "--algorithm", "fedper", "--device", "cpu", "--json", str(file)]
    result = CliRunner().invoke(main, ["bench", "many", *options, "cohort.size=4"], catch_exceptions=False)
    assert "ratio, median over rounds" in result.output
    figures = json.loads(file.read_text())
    keys = {"workload", "plain_seconds_per_round", "raysim_seconds_per_round", "ratio", "peak_private_mb", "machine"}
    assert keys <= figures.keys()
    assert (figures["cohort"], figures["actors"], figures["algorithm"]["name"]) == (4, 1, "fedper")
    assert {"cpu", "cores", "versions"} <= figures["machine"].keys()


@pytest.mark.slow
def test_values_of_a_key_are_measured_in_turn_and_drawn(cluster, small, tmp_path):
    file, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    options = ["--rounds", "2", "--actors", "1", "--json", str(file), "--plot", str(picture)]
    result = CliRunner().invoke(main, ["bench", "many", "--vary", "cohort.size=2,6", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert [f["cohort"] for f in json.loads(file.read_text())] == [2, 6]
    assert picture.read_bytes().startswith(b"\x89PNG")
    for wrong in (["--vary", "cohort.size"], ["--plot", str(picture)], ["--json", str(tmp_path / "no" / "x.json")]):
        assert CliRunner().invoke(main, ["bench", "many", *wrong]).exit_code == 2


@pytest.mark.slow
def test_many_clients_beside_few(cluster, small, tmp_path):
    file = tmp_path / "figures.json"
    options = ["--rounds", "7", "--actors", "1", "--algorithm", "fedper", "--json", str(file)]
    result = CliRunner().invoke(main, ["bench", "clients", *options], catch_exceptions=False)
    assert "have a state of" in result.output
    figures = json.loads(file.read_text())
    assert figures["num_clients"] == 12
    assert figures["clients_with_state"] == 12  # 42 draws
    assert figures["state_bytes_per_client"] == 4 * (16 * 10 + 10)  # the head
    assert len(figures["private_mb"]) == 6


def test_what_the_plain_loop_can_not_do_is_refused(cluster):
    for override, message in (
        ("algorithm={name: fedrep}", "fedrep has epochs, client_init, client_step of its own"),
        ("algorithm={name: fedbabu}", "fedbabu has"),
        ("algorithm={name: fedprox}", "fedprox has gradient of its own"),
        ("algorithm={name: knnper}", "knnper has predict of its own"),
        ("algorithm={name: fedperfix, freeze_backbone: true}", "fedperfix has frozen parameters of its own"),
        ("data.augment=flip", "no augmentation"),
        ("evaluate.every=2", "evaluates the cohort in every round"),
    ):
        with pytest.raises(ConfigError, match=message):
            measure.against_plain_torch(SMALL, 2, ["resources.num_actors=1", override])
    result = CliRunner().invoke(main, ["bench", "many", "cohort.sise=3"])
    assert result.exit_code == 2


def test_the_workloads_are_those_of_the_documentation():
    heavy, many, clients = (WORKLOADS[name] for name in ("heavy", "many", "clients"))
    assert (heavy.cohort, heavy.num_train, heavy.num_test, heavy.batch_size) == (20, 80, 20, 20)
    assert (many.num_clients, many.cohort, many.num_train, many.num_test, many.batch_size) == (10_000, 1000, 8, 2, 8)
    for workload, tokens in ((heavy, 65), (many, 17), (clients, 17)):
        assert (workload.side // workload.model["patch_size"]) ** 2 + 1 == tokens
        partition = workload.partition(50)
        assert partition.num_clients == 50
        assert (partition.num_train == workload.num_train).all()
        assert (partition.num_test == workload.num_test).all()
        assert partition.indices.max() < len(workload.dataset().labels)
    assert np.array_equal(many.partition(7).indices, many.partition(7).indices)
