"""The GPU bench, rehearsed on a CPU with tiny sizes, so that it can't fail for a reason that a CPU shows."""

import json

import pytest
import torch

from raysim.algorithms import ALGORITHMS
from raysim.bench.gpu import __main__ as command
from raysim.bench.gpu.bench import Bench
from raysim.bench.gpu.steps import STEPS
from raysim.bench.gpu.tables import markdown


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What each step writes, in this process."""
    folder, found = tmp_path_factory.mktemp("rows"), {}
    for name, step in STEPS.items():
        (folder / name).touch()
        step(Bench(torch.device("cpu"), tiny=True, seconds=300.0, rows=folder / name))
        found[name] = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return found


@pytest.mark.slow
def test_every_step_does_what_it_says(rows):
    assert STEPS.keys() == command.SHARES.keys()
    assert all(row["passed"] for name in ("correctness", "methods") for row in rows[name])
    assert [row["method"] for row in rows["methods"]] == list(ALGORITHMS)
    assert len({row["bits"] for row in rows["actors"]}) == 1
    assert [row["actors"] for row in rows["actors"]] == [1, 2]
    assert [(row["what"], row["clients"]) for row in rows["small"]] == [
        ("plain torch", 1),
        ("raysim", 1),
        ("raysim", 4),
    ]
    assert {row["precision"] for row in rows["large"]} == {"float32", "bfloat16"}
    (memory,) = rows["memory"]
    assert memory["chosen"] == 4
    (launches,) = rows["launches"]
    assert launches["operations"] > 50  # of one local step
    (paper,) = rows["paper"]
    assert paper["clients_trained"] >= 8
    assert "| fedperfix | 0 | 0 |" in markdown({n: {"rows": r, "seconds": 1, "failure": ""} for n, r in rows.items()})


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file = tmp_path / "figures.json"
    arguments = ["--device", "cpu", "--tiny", "--minutes", "2", "--steps", "launches,paper", "--json", str(file)]
    assert command.main(arguments) == 0
    assert {name: len(step["rows"]) for name, step in json.loads(file.read_text()).items()} == {
        "launches": 1,
        "paper": 1,
    }
    assert "### paper" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--steps", "nothing"])
    assert "there is no step 'nothing'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_that_fails_or_hangs_is_said_and_what_it_found_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "START_SECONDS", 0.0)
    hung = command.run_step("correctness", "cpu", True, 0.5)
    assert "not done after 0 s" in hung["failure"]
    monkeypatch.undo()
    failed = command.run_step("no such step", "cpu", True, 30.0)
    assert "KeyError: 'no such step'" in failed["failure"]
    rows = [{"a": 1, "b": 0.12345}, {"a": 20_000, "b": 2.0}, {"c": "text"}]
    text = markdown({"one": {"rows": rows, "seconds": 3, "failure": "it broke"}})
    assert "| a | b |\n|---|---|\n| 1 | 0.123 |\n| 20,000 | 2 |\n\n| c |" in text
    assert "**failed after 3 s**" in text
    assert "it broke" in text
