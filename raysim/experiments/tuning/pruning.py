"""Pruning: tells Optuna how a trial does while it runs, and ends it early if that is what Optuna advises."""

from __future__ import annotations

import math

import optuna

from raysim.experiments.callbacks.callback import Callback, LiveRun
from raysim.experiments.tuning.search import PRUNED
from raysim.experiments.tuning.storage import open_storage
from raysim.storage.records import RoundRecord


class Pruning(Callback):
    """Reports the metric of every evaluated round of the runs of one seed, and stops a run that is to be pruned.

    Args:
        storage: the file of Optuna's storage.
        trials: the ids in it of the trials, by the entry of the study that is run, each with the name of Optuna's study.
        seed: of the runs by which a trial is judged.
    """

    def __init__(
        self,
        storage: str,
        trials: dict[str, tuple[str, int]],
        pruner: optuna.pruners.BasePruner,
        metric: str,
        seed: int,
    ) -> None:
        self._storage, self._trials, self._pruner = storage, trials, pruner
        self._metric, self._seed = metric, seed
        self._trial: optuna.Trial | None = None
        self._judged = 0  # the last round, from 1, that Optuna knows

    def started(self, run: LiveRun) -> None:
        if run.config.seed == self._seed:
            study, trial_id = self._trials[run.entry]
            loaded = optuna.load_study(study_name=study, storage=open_storage(self._storage), pruner=self._pruner)
            self._trial = optuna.Trial(loaded, trial_id)
            self._judged = self._trial.storage.get_trial(trial_id).last_step or 0

    def round_completed(self, run: LiveRun, record: RoundRecord) -> None:
        value = record.metrics.get(self._metric)
        if self._trial is None or run.stopped is not None or value is None or not math.isfinite(value):
            return
        if record.round + 1 < self._judged:
            return  # of a run that was resumed: an earlier process reported it, and did not prune
        if record.round + 1 > self._judged:
            self._trial.report(value, record.round + 1)
        if record.round + 1 < run.config.rounds and self._trial.should_prune():
            self._trial.set_user_attr(PRUNED, record.round + 1)
            run.stop(PRUNED)
