"""Pruning: whether a trial is worth its rounds, judged as they come by Optuna's pruner.

The judge is a function of the trials that had ended before this one began, and of its own rounds. It keeps nothing anywhere:
a run that is resumed, and told of its rounds anew, is judged as if it had not been interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysim.config.sections.tuning import TuneConfig
from raysim.experiments.callbacks.callback import Callback, LiveRun
from raysim.storage.records import RoundRecord

PRUNED = "pruned"
"""The reason that a run of a pruned trial gives for its early end."""


@dataclass
class Judgement:
    """What Optuna knows of a trial that was judged.

    Attributes:
        pruned: after how many rounds it was found not worth the others; None if it was not.
        values: the metric after so many rounds, as far as it was judged.
        attributes: what the pruner has noted down.
    """

    pruned: int | None = None
    values: dict[int, float] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Judge:
    """Judges the rounds of one trial, in order.

    Args:
        rounds: of a run that is not pruned.
        study: the name of Optuna's study, by which Hyperband assigns brackets.
        number: of the trial; ``finished`` are those before it that had ended when it began.
    """

    def __init__(self, tune: TuneConfig, rounds: int, study: str, number: int, finished: Sequence[FrozenTrial]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner: optuna.pruners.BasePruner = optuna.pruners.MedianPruner()
        if tune.pruner == "hyperband":
            pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=rounds)
        self._study = optuna.create_study(study_name=study, direction=tune.direction, pruner=pruner)
        known = {trial.number: trial for trial in finished}
        for other in range(number):  # in its place, for numbers are given in order
            self._study.add_trial(known.get(other) or create_trial(state=TrialState.FAIL))
        self._trial, self._rounds = self._study.ask(), rounds
        self.judgement = Judgement()

    def prunes(self, rounds: int, value: float) -> bool:
        """Whether the trial is to end, whose metric is ``value`` after so many rounds; asked no more once it was told so."""
        found = self.judgement
        found.values[rounds] = value
        self._trial.report(value, rounds)
        if rounds < self._rounds and self._trial.should_prune():
            found.pruned = rounds
        found.attributes = dict(self._study.get_trials(deepcopy=False)[-1].system_attrs)
        return found.pruned is not None


class Pruning(Callback):
    """Stops the run of a trial that is to be pruned.

    Args:
        trials: the arguments of ``Judge`` from ``study`` on, by entry of the study that is run, of which the first seed is
            judged.
    """

    def __init__(self, tune: TuneConfig, trials: Mapping[str, tuple[str, int, tuple[FrozenTrial, ...]]]) -> None:
        self._tune, self._trials = tune, dict(trials)
        self._judge: Judge | None = None

    def started(self, run: LiveRun) -> None:
        if run.config.seed == self._tune.seeds[0]:
            self._judge = Judge(self._tune, run.config.rounds, *self._trials[run.entry])

    def round_completed(self, run: LiveRun, record: RoundRecord) -> None:
        value = record.metrics.get(self._tune.metric)
        if self._judge is None or run.stopped is not None or value is None or not math.isfinite(value):
            return
        if self._judge.prunes(record.round + 1, value):
            run.stop(PRUNED)


def judged(
    tune: TuneConfig, rounds: int, trial: tuple[str, int, tuple[FrozenTrial, ...]], values: Mapping[int, float]
) -> Judgement:
    """What became of a trial whose metric had these values after so many rounds: as ``Pruning`` has judged it."""
    judge = Judge(tune, rounds, *trial)
    for after, value in values.items():
        if math.isfinite(value) and judge.prunes(after, value):
            break
    return judge.judgement
