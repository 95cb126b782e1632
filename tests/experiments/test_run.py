"""The loop over rounds and what it tells its listeners, with a run that computes nothing."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from raysim.errors import StatesLost, Stopped
from raysim.experiments import run as module
from raysim.experiments.events import RunListener
from raysim.experiments.run import Run
from raysim.storage.records import Records, RoundRecord
from raysim.storage.study_folder import RunState
from raysim.workers.dispatch import Progress
from raysim.workers.run_setup import Machine

ROUNDS = 3


class Listener(RunListener):
    """Writes down what it is told; raises where it is asked to."""

    def __init__(self, raises=None):
        self.told, self.raises = [], raises

    def __getattribute__(self, name):
        if not hasattr(RunListener, name) or name.startswith("_"):
            return object.__getattribute__(self, name)

        def tell(*arguments):
            shown = (
                arguments[0].round if name == "completed" else arguments[0] if name in ("progressed", "ended") else ""
            )
            self.told.append(f"{name} {shown}".strip())
            if self.raises and name == self.raises[0]:
                raise self.raises[1]

        return tell


class FakeRun:
    """Rounds without clients; ``lost`` are rounds in which states are lost, once each."""

    lost: tuple[int, ...] = ()

    def __init__(self, setup, layout, pool, nodes, checkpoint, domains):
        self.config, self.next_round, self.records, self.shared = setup.config, 0, Records(), torch.zeros(1)
        self.pending, self.rounds = None, ROUNDS

    def round(self):
        round_ = self.next_round
        yield Progress(0, 1, ())
        if round_ in type(self).lost:
            type(self).lost = tuple(r for r in type(self).lost if r != round_)
            raise StatesLost("a node is gone")
        self.next_round = round_ + 1
        if self.pending is not None:
            yield self.pending
        self.pending = RoundRecord(round_, 0, {})

    def finish(self):
        yield self.pending

    def checksums(self):
        return {"shared": "abc"}


@pytest.fixture
def execute(monkeypatch):
    def run(*listeners, lost=()):
        monkeypatch.setattr(FakeRun, "lost", lost)
        monkeypatch.setattr(module, "FederatedRun", FakeRun)
        monkeypatch.setattr(module, "StateNodes", lambda size: SimpleNamespace(close=lambda: None))
        result = SimpleNamespace(of=lambda placed, state, records, shared: ("result", dict(state.checksums)))
        monkeypatch.setattr(module, "RunResult", result)
        config = SimpleNamespace(rounds=ROUNDS)
        placed = SimpleNamespace(state_size=0, setup=SimpleNamespace(config=config), layout=None, domains=None)
        pool = SimpleNamespace(configure=lambda setup, nodes: Machine("cpu", "AVX2", "digest", "node", 0, "log"))
        notes = []
        state = RunState(entry="a", name="a · seed 0", folder="00-a")
        return Run(placed, state, pool, None, False, listeners, notes.append).execute(), notes

    return run


def round_of(i, completed):
    return [f"progressed {i}", *(f"completed {r}" for r in completed)]


WHOLE = [
    *("started", "rounds_begin"),
    *(*round_of(0, []), "between_rounds", *round_of(1, [0]), "between_rounds", *round_of(2, [1]), "between_rounds"),
    *("completed 2", "rounds_done", "rounds_end", "finished", "ended FINISHED"),
]


def test_listeners_are_told_of_a_run_from_its_start_to_its_end(execute):
    first, second = Listener(), Listener()
    result, notes = execute(first, second)
    assert result == ("result", {"shared": "abc"})
    assert first.told == second.told == WHOLE
    assert notes == []


def test_a_run_that_lost_states_begins_its_rounds_again_and_is_started_once(execute):
    listener = Listener()
    _, notes = execute(listener, lost=(1,))
    begin = ["started", "rounds_begin", *round_of(0, []), "between_rounds", "progressed 1", "rounds_end"]
    assert listener.told == [*begin, *WHOLE[1:]]
    assert notes == ["a · seed 0: a node is gone; back to the last checkpoint"]


@pytest.mark.parametrize(("error", "status"), [(ValueError("refused"), "FAILED"), (Stopped(), "KILLED")])
def test_a_listener_that_raises_ends_the_run(execute, error, status):
    after, raising = Listener(), Listener(("between_rounds", error))
    with pytest.raises(type(error)):
        execute(raising, after)
    assert after.told == ["started", "rounds_begin", *round_of(0, []), "rounds_end", f"ended {status}"]


def test_records_of_a_run_are_a_table():
    records = Records(rounds=[RoundRecord(0, 5, {"train/loss": 1.0})])
    table = records.history("a", 3, "id")
    assert isinstance(table, pd.DataFrame)
    assert table.iloc[0].to_dict() == {"name": "a", "seed": 3, "run_id": "id", "round": 0, "train/loss": 1.0}
    assert np.isfinite(table["train/loss"]).all()
