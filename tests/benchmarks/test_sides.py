"""A side of ``benchmarks/compare.py``: processes that are told when it is their turn, and what happens if they are gone."""

import json
import os

import numpy as np
import psutil
import pytest
import sides
from sides import Side, SideFailed

TALKS = """
import os
import numpy as np
from turns import Turns
turns = Turns()
print("hello from", os.environ["RANK"])
done = []
for round in turns.rounds({"made": "here", "rank": os.environ["RANK"]}):
    done.append(round)
turns.finish({"done": np.array(done, np.float32)})
"""
BREAKS = TALKS.replace("done.append(round)", "1 / (1 - round)")
SLEEPS = TALKS.replace("done.append(round)", "import time; time.sleep(60)")
NEVER_READY = "raise ImportError('no such rival')"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A side whose ``run.py`` is given."""

    def make(script, processes=1, limit=30.0):
        folder = tmp_path / "rivals" / "other"
        folder.mkdir(parents=True)
        (folder / "run.py").write_text(script)
        monkeypatch.setenv("PYTHONPATH", str(sides.HERE))
        monkeypatch.setattr(sides, "HERE", tmp_path)
        if processes > 1:
            monkeypatch.setattr(sides, "ONE_PROCESS_PER_CORE", {"other"})
        task = tmp_path / "task"
        task.mkdir()
        return Side("other", task, tmp_path / "log", processes, limit)

    return make


@pytest.mark.parametrize("processes", [1, 2])
def test_a_side_does_its_rounds_and_hands_over_what_it_has(start, processes):
    with start(TALKS, processes) as side:
        side.wait_until_ready()
        assert side.versions == {"made": "here", "rank": "0"}
        assert [side.round(round) > 0 for round in range(3)] == [True] * 3
        assert side.cpu_seconds() > 0.01
        assert side.private_mb() > 5
        np.testing.assert_array_equal(side.finish()["done"], [0, 1, 2])
        pids = [process.pid for process in side._processes]
    assert len(pids) == processes
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_side_that_breaks_is_named_with_what_it_printed(start):
    with start(BREAKS) as side:
        side.wait_until_ready()
        side.round(0)
        with pytest.raises(SideFailed, match=r"(?s)other ended:.*hello from 0.*ZeroDivisionError"):
            side.round(1)


def test_a_side_that_never_gets_ready_is_noticed_at_once(start):
    with (
        start(NEVER_READY) as side,
        pytest.raises(SideFailed, match=r"(?s)ended before its first round.*no such rival"),
    ):
        side.wait_until_ready()


def test_a_side_that_hangs_is_given_up_and_its_process_ended(start, monkeypatch):
    monkeypatch.setattr(sides, "PATIENCE", 0.1)
    with start(SLEEPS, limit=5.0) as side:
        side.wait_until_ready()
        side._limit = 0.2
        with pytest.raises(SideFailed, match=r"other did not answer within 0 s"):
            side.round(0)
        (process,) = side._processes
    assert process.poll() is not None


def test_packages_are_installed_once_for_each_list_of_requirements(tmp_path, monkeypatch):
    asked = tmp_path / "asked.json"
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nmkdir -p "$7"; echo \'"\'"$7"\'"\' >> {asked}\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sides, "HERE", tmp_path)
    monkeypatch.setattr(sides, "PACKAGES", tmp_path / "packages")
    monkeypatch.setattr(sides.sys, "executable", str(fake))
    folder = tmp_path / "rivals" / "other"
    folder.mkdir(parents=True)
    assert sides.packages_of("other") is None
    (folder / "requirements.txt").write_text("one>=1\n")
    first = sides.packages_of("other")
    assert first is not None
    assert first.is_dir()
    assert sides.packages_of("other") == first
    (folder / "requirements.txt").write_text("one>=2\n")
    assert sides.packages_of("other") != first
    assert len([json.loads(line) for line in asked.read_text().splitlines()]) == 2
    fake.write_text("#!/bin/sh\nexit 1\n")
    (folder / "requirements.txt").write_text("none\n")
    with pytest.raises(SideFailed, match="other: pip can't install"):
        sides.packages_of("other")
    assert os.listdir(tmp_path / "packages")
