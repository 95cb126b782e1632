"""Pruning by rounds that a test makes up."""

import optuna
import pytest
from optuna.trial import TrialState

from raysim.experiments.tuning.pruning import Judge, judged
from raysim.experiments.tuning.search import Outcome, Search
from raysim.experiments.tuning.space import LR, space_of
from raysim.experiments.tuning.storage import open_storage

from configs import tiny

ROUNDS = 9
GIVEN = {LR: {"low": 1e-3, "high": 1.0, "log": True}}


def curve(number):
    """A metric over rounds; every third trial is bad."""
    return {after: (0.5 if number % 3 else 0.1) + 0.01 * after + 0.001 * number for after in range(1, ROUNDS + 1)}


def search(tmp_path, **tune):
    config = tiny(tune={"trials": 24, "space": GIVEN, **tune}, algorithm={"name": "fedprox"}, rounds=ROUNDS)
    return Search("s", config, space_of("a", config), open_storage(tmp_path / "optuna.db"), 36)


def in_optuna(tune):
    """After how many rounds Optuna itself ends each trial, run one after another; None: not."""
    pruner = optuna.pruners.MedianPruner()
    if tune.pruner == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=ROUNDS)
    study, found = optuna.create_study(study_name="s", direction="maximize", pruner=pruner), []
    for number in range(24):
        trial, ended = study.ask(), None
        for after, value in curve(number).items():
            trial.report(value, after)
            if after < ROUNDS and trial.should_prune():
                ended = after
                break
        study.tell(trial, None if ended else value, state=TrialState.PRUNED if ended else None)
        found.append(ended)
    return found


@pytest.mark.parametrize("pruner", ["hyperband", "median"])
def test_trials_are_pruned_where_optuna_would_also_if_every_run_was_resumed_in_the_middle(tmp_path, pruner):
    found = []
    while asked := search(tmp_path, pruner=pruner).ask():
        (trial,) = asked
        tune = search(tmp_path, pruner=pruner).tune
        judge = Judge(tune, ROUNDS, "s", trial.number, trial.finished)
        for after, value in list(curve(trial.number).items())[:5]:
            if judge.prunes(after, value):
                break  # and the process is killed: another one is told of all rounds again
        judgement = judged(tune, ROUNDS, ("s", trial.number, trial.finished), curve(trial.number))
        assert judge.judgement.pruned in (None, judgement.pruned)
        found.append(judgement.pruned)
        value = None if judgement.pruned else curve(trial.number)[ROUNDS]
        outcome = Outcome(value, pruned=judgement.pruned is not None, judgement=judgement)
        search(tmp_path, pruner=pruner).tell(trial, outcome)
    tune = search(tmp_path, pruner=pruner).tune
    assert found == in_optuna(tune)
    assert 3 < sum(after is not None for after in found) < 20


def test_values_that_are_not_finite_are_not_judged():
    tune = tiny(tune={"pruner": "median"}).tune
    found = judged(tune, 3, ("s", 0, ()), {1: float("nan"), 2: 0.5})
    assert (found.pruned, found.values) == (None, {2: 0.5})
