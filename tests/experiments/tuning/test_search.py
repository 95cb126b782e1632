"""A search without runs: its trials are judged by a formula."""

import itertools
import math
from contextlib import suppress

import pytest
from optuna.trial import TrialState

from raysim.errors import ConfigError
from raysim.experiments.tuning.search import Outcome, Search
from raysim.experiments.tuning.space import LR, space_of
from raysim.experiments.tuning.storage import only_here, open_storage, storage_file

from configs import tiny

GIVEN = {LR: {"low": 1e-3, "high": 1.0, "log": True}, "algorithm.mu": [0.01, 0.1, 1.0]}


@pytest.fixture
def new(tmp_path):
    """A search as a new process would have it."""

    def new(name="search", **tune):
        config = tiny(algorithm={"name": "fedprox"}, tune={"trials": 12, "space": GIVEN, **tune})
        storage = open_storage(tmp_path / "optuna.db")
        return Search(name, config, space_of("fedprox", config), storage, len(config.tune.seeds) * 2 * 4)

    return new


def judged(trial):
    """Best at a learning rate of 0.03 and a mu of 0.1; some trials fail or are pruned."""
    if trial.number % 5 == 4:
        return Outcome(None, reason="diverged", updates=10)
    if trial.number % 5 == 3:
        return Outcome(None, pruned=True, updates=5)
    distance = abs(math.log10(trial.values[LR] / 0.03)) + (trial.values["algorithm.mu"] != 0.1)
    return Outcome(1 - distance / 4, updates=32, seconds=1.5)


def taken(search):
    """All values that it asks for, to its end."""
    found = []
    while asked := search.ask():
        (trial,) = asked
        found.append(trial.values)
        search.tell(trial, judged(trial))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "quasi-random"])
def test_an_interrupted_search_asks_for_the_same_values(new, sampler):
    expected = taken(new("whole", sampler=sampler))
    assert len(expected) == 12
    assert expected[0] == {LR: 0.1, "algorithm.mu": 0.1}  # the configuration as it is
    assert len({values[LR] for values in expected}) == 12
    found = []
    for number in range(12):
        (asked,) = new("parts", sampler=sampler).ask()  # and the process is killed,
        (again,) = new("parts", sampler=sampler).ask()
        assert again == asked
        found.append(again.values)
        new("parts", sampler=sampler).tell(again, judged(again))
        assert again.number == number
    assert found == expected
    assert new("parts", sampler=sampler).ask() == []


def test_another_seed_asks_for_others(new, tmp_path):
    first = taken(new("first"))
    config = tiny(seed=1, algorithm={"name": "fedprox"}, tune={"trials": 12, "space": GIVEN})
    search = Search("second", config, space_of("fedprox", config), open_storage(tmp_path / "optuna.db"), 8)
    assert taken(search)[1:] != first[1:]


def test_tpe_finds_more_than_chance(new):
    found = taken(new(trials=40))
    late = [abs(math.log10(values[LR] / 0.03)) for values in found[20:]]
    assert sum(late) / len(late) < 0.6  # of draws that know nothing it would be 0.79


def test_a_grid_is_every_combination_once_and_begins_with_the_configuration(new):
    space = {LR: [0.01, 0.1, 1.0], "algorithm.mu": [0.01, 0.1]}
    found = taken(new(sampler="grid", space=space))
    assert found[0] == {LR: 0.1, "algorithm.mu": 0.1}
    every = [{LR: lr, "algorithm.mu": mu} for lr, mu in itertools.product(*space.values())]
    assert sorted(map(str, found)) == sorted(map(str, every))
    assert len(taken(new("few", sampler="grid", space=space, trials=4))) == 4
    zero = new("zero", sampler="grid", space={"train.optimizer.weight_decay": [1, 0]})
    assert zero.ask()[0].values == {"train.optimizer.weight_decay": 0}  # what the file has as 0.0
    with pytest.raises(
        ConfigError, match=r"a grid needs a list of values for every key, and train\.optimizer\.lr has a range"
    ):
        new(sampler="grid")


def test_failed_and_pruned_trials_count(new):
    search = new()
    taken(search)
    states = [t.state for t in search.trials]
    assert states.count(TrialState.FAIL) == 2
    assert states.count(TrialState.PRUNED) == 2
    assert states.count(TrialState.COMPLETE) == 8
    assert search.best.value == max(t.value for t in search.trials if t.state == TrialState.COMPLETE)


def test_of_equal_values_the_first_is_the_best(new):
    for direction, best in (("maximize", 1), ("minimize", 0)):
        search = new(direction, trials=4, direction=direction)
        while asked := search.ask():
            search.tell(asked[0], Outcome([0.1, 0.7, 0.7, 0.1][asked[0].number]))
        assert search.best.number == best


def test_what_pruning_saves_is_spent_where_updates_are_the_budget(new):
    search = new(trials=4, budget="updates", seeds=[7])  # of 2 rounds with 4 clients each
    number = 0
    while asked := search.ask():
        search.tell(asked[0], Outcome(None, pruned=True, updates=3) if number % 2 else Outcome(0.5, updates=8))
        number += 1
    assert sum(t.user_attrs["updates"] for t in search.trials) == 8 + 3 + 8 + 3 + 8 + 3
    seconds = new("seconds", budget="seconds", seconds=4.0)
    while asked := seconds.ask():
        seconds.tell(asked[0], Outcome(0.5, seconds=1.5))
    assert len(seconds.trials) == 3


def test_failed_trials_use_up_a_budget_of_updates(new):
    search = new(trials=3, budget="updates", seeds=[7])
    number = 0
    while asked := search.ask():
        search.tell(asked[0], Outcome(None, reason="never began"))
        number += 1
    assert number == 3


def test_an_interrupted_batch_is_completed_as_it_would_have_been(new, monkeypatch):
    """Trials of a batch know of those before it alone, whenever the process was killed."""
    whole, expected = new("whole"), []
    while asked := whole.ask(4):
        expected += [trial.values for trial in asked]
        for trial in asked:
            whole.tell(trial, judged(trial))
    found = []
    draw = Search._next
    while True:
        left = iter(range(2))
        with monkeypatch.context() as patch, suppress(StopIteration):  # killed when two of a batch were asked for
            patch.setattr(Search, "_next", lambda self, left=left: (next(left), draw(self))[1])
            new("parts").ask(4)
        asked = new("parts").ask(4)
        if not asked:
            break
        found += [trial.values for trial in asked]
        for trial in asked[:3]:  # and before the last one's result was written down
            new("parts").tell(trial, judged(trial))
        (last,) = new("parts").ask(4)
        assert (last.number, last.values) == (asked[3].number, asked[3].values)
        new("parts").tell(last, judged(last))
    assert found == expected
    assert len(found) == 12


def test_several_trials_at_a_time_stay_in_the_budget(new):
    search = new(trials=5)
    sizes = []
    while asked := search.ask(2):
        sizes.append(len(asked))
        for trial in asked:
            search.tell(trial, Outcome(0.5))
    assert sizes == [2, 2, 1]


def test_importances_add_up_and_are_not_told_where_little_is_known(new):
    search = new(trials=30)
    taken(search)
    found = search.importances()
    assert found.keys() == {LR, "algorithm.mu"}
    assert sum(found.values()) == pytest.approx(1.0)
    few = new("few", trials=3)
    taken(few)
    assert few.importances() == {}


def test_the_storage_is_for_one_process_and_damage_is_told(tmp_path):
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    file = storage_file(uri)
    assert file == tmp_path / "store" / "optuna.db"
    with only_here(file), pytest.raises(ConfigError, match="another `raysim tune` is at work with it"), only_here(file):
        pass
    with only_here(file):  # is free again
        pass
    file.write_bytes(b"this is no database" * 100)
    with (
        pytest.raises(
            ConfigError, match=r"optuna\.db: Optuna's storage can't be used: .*not a database.* move it away"
        ),
        only_here(file),
    ):
        pass
