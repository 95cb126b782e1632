"""Trials as runs: the configuration of a trial, its runs on the actors that a study would use, and what became of it."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from raysim.analysis.divergence import rejections
from raysim.config.locations import checkpoint_root, resolve_uri
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.callbacks.callback import ROUNDS_AHEAD
from raysim.experiments.command import start
from raysim.experiments.finished import finished_results
from raysim.experiments.preparation import check
from raysim.experiments.results import Result, RunResult
from raysim.experiments.tuning.pruning import Judgement, Pruning, judged
from raysim.experiments.tuning.search import Asked, Outcome, Search
from raysim.experiments.tuning.space import changes, with_values
from raysim.experiments.watch_driver import ClientsFailed, Watch
from raysim.storage.folder import Folder
from raysim.storage.study_folder import finished
from raysim.tracking.mlflow_store import MLflowStore

TRIAL_TAG, STATE_TAG = "raysim.trial", "raysim.trial_state"
Runs = dict[tuple[str, int], RunResult]


class Trials:
    """Runs the trials of one entry.

    Args:
        config: of the entry.
        base: the name of the file, which the runs are named after.
        experiment: of MLflow, for trials.
        parent: the run in MLflow that they belong to.
    """

    def __init__(
        self,
        search: Search,
        config: Config,
        base: str,
        store: MLflowStore,
        experiment: str,
        parent: str,
        watch: Watch | None,
        notify: Callable[[str], None],
    ) -> None:
        assert config.tune is not None
        self._search, self._config, self._tune, self._base = search, config, config.tune, base
        self._store, self._experiment, self._parent = store, experiment, parent
        self._watch, self._notify = watch, notify
        root = checkpoint_root(config.checkpoint, resolve_uri(config.tracking))
        self._checkpoints = f"{root.rstrip('/')}/tuning-{search.name.rsplit(' ', 1)[-1]}"

    def run(self, trials: Sequence[Asked]) -> dict[int, Outcome]:
        """Run trials, all of them at a time; returns what became of each by its number.

        Raises:
            RunKilled, RunFailed, ConfigError: it is not the trials' fault; they go on with the same command.
        """
        begin = time.perf_counter()
        failed: dict[int, Outcome] = {}
        for trial in trials:
            try:  # of values that don't go together
                check(with_values(self._plain(), trial.values, f"trial {trial.number + 1}"))
            except ConfigError as error:
                check(self._plain())  # or is it not the values?
                failed[trial.number] = Outcome(None, reason="; ".join(error.problems))
        left = [trial for trial in trials if trial.number not in failed]
        outcomes = failed | (self._of_runs(left) if left else {})
        seconds = time.perf_counter() - begin
        for trial in trials:
            outcome = outcomes[trial.number]
            state = "pruned" if outcome.pruned else "failed" if outcome.value is None else "complete"
            for run_id in outcome.runs:
                self._store.set_tags(run_id, {TRIAL_TAG: str(trial.number + 1), STATE_TAG: state})
        return {number: replace(outcome, seconds=seconds / len(trials)) for number, outcome in outcomes.items()}

    def forget(self) -> None:
        """Delete the checkpoints of trials that have ended: nothing goes on from them."""
        folder = Folder(self._checkpoints)
        if folder.local is not None:
            shutil.rmtree(folder.local, ignore_errors=True)
        else:
            folder.clear()

    def _of_runs(self, trials: Sequence[Asked]) -> dict[int, Outcome]:
        first, others = self._tune.seeds[:1], self._tune.seeds[1:]
        if self._tune.pruner == "none":
            runs, reasons = self._study(trials, self._tune.seeds)
            return {t.number: self._outcome(t, runs, reasons.get(t.number, ""), None) for t in trials}
        runs, reasons = self._study(trials, first)
        judgements = {t.number: self._judged(t, runs[_entry(t), first[0]]) for t in trials if t.number not in reasons}
        go_on = [t for t in trials if t.number in judgements and not self._is_pruned(t, runs, judgements[t.number])]
        if others and go_on:
            more, reasons_of_others = self._study(go_on, others)
            runs, reasons = runs | more, reasons | reasons_of_others
        return {t.number: self._outcome(t, runs, reasons.get(t.number, ""), judgements.get(t.number)) for t in trials}

    def _study(self, trials: Sequence[Asked], seeds: Sequence[int]) -> tuple[Runs, dict[int, str]]:
        """The runs of trials, by entry and seed; and by the trial's number why it has none."""
        study = [
            {"name": _entry(t), "seeds": list(seeds), **changes(self._plain(), t.values, _entry(t))} for t in trials
        ]
        name = f"{self._base} {self._search.name} {' '.join(str(t.number + 1) for t in trials)}"
        raw = self._plain().model_dump(mode="json")
        config = Config.model_validate({**raw, "name": name, "study": study})
        callbacks = []
        if self._tune.pruner != "none" and self._tune.seeds[0] in seeds:
            callbacks = [Pruning(self._tune, {_entry(t): (self._search.name, t.number, t.finished) for t in trials})]
        try:
            result = self._finished_before(config) or start(
                config, self._watch, callbacks=callbacks, tuning=self._parent
            )
        except ClientsFailed as error:  # whatever else ends a run is not the trial's fault
            if len(trials) == 1:
                lines = str(error).splitlines()
                return {}, {trials[0].number: next((line.strip() for line in lines if line.startswith("  ")), lines[0])}
            alone = [self._study([trial], seeds) for trial in trials]  # which of them, and what had the others?
            return (
                {key: run for runs, _ in alone for key, run in runs.items()},
                {number: why for _, reasons in alone for number, why in reasons.items()},
            )
        return {(run.entry, run.seed): run for run in result.runs}, {}

    def _finished_before(self, config: Config) -> Result | None:
        """The results of runs that were finished when the tuning was interrupted."""
        if config.checkpoint.every is None:
            return None
        found = finished(self._checkpoints, config, resolve_uri(config.tracking))
        return finished_results(found, state) if found is not None and (state := found.read()) is not None else None

    def _plain(self) -> Config:
        """The entry's configuration for a trial: without what costs time or space and changes none of its numbers."""
        return self._config.model_copy(
            update={
                "tune": None,
                "checkpoint": self._config.checkpoint.model_copy(update={"dir": self._checkpoints}),
                "tracking": self._config.tracking.model_copy(update={"experiment": self._experiment, "models": "none"}),
                "evaluate": self._config.evaluate.model_copy(update={"sensitivity": False}),
            }
        )

    def _judged(self, trial: Asked, run: RunResult) -> Judgement:
        """How the run of the first seed was judged while it ran; the last rounds of one that ended early came after that."""
        rounds, history = self._config.rounds, run.history
        judged_rounds = rounds if len(history) == rounds else len(history) - ROUNDS_AHEAD
        values = {after: value for after, value in _values(history, self._tune.metric) if after <= judged_rounds}
        return judged(self._tune, rounds, (self._search.name, trial.number, trial.finished), values)

    def _is_pruned(self, trial: Asked, runs: Runs, judgement: Judgement) -> bool:
        """Whether the run by which it is judged was ended; not if it had come to its last round anyway."""
        return (
            judgement.pruned is not None and len(runs[_entry(trial), self._tune.seeds[0]].history) < self._config.rounds
        )

    def _outcome(self, trial: Asked, runs: Runs, reason: str, judgement: Judgement | None) -> Outcome:
        own = [run for (entry, _), run in runs.items() if entry == _entry(trial)]
        trained = sum(len(run.history) for run in own) * self._config.cohort_size
        values = [value_of(run.history, self._tune.metric) for run in own]
        made: dict[str, Any] = {"updates": trained, "runs": [run.run_id for run in own], "judgement": judgement}
        if not reason and judgement is not None and self._is_pruned(trial, runs, judgement):
            return Outcome(None, pruned=True, **made)
        reason = reason or next(iter(line for run in own for line in rejections(run.history)), "")
        if not reason and not all(math.isfinite(value) for value in values):
            reason = f"{self._tune.metric} is not finite, or was not logged, in the last round"
        if reason:
            return Outcome(None, reason=reason, **made)
        return Outcome(sum(values) / len(values), **made)


def _entry(trial: Asked) -> str:
    return f"trial {trial.number + 1}"


def _values(history: pd.DataFrame, metric: str) -> list[tuple[int, float]]:
    """A metric after each round that has it, rounds counted from 1."""
    known = history[["round", metric]].dropna() if metric in history else []
    return [(int(round) + 1, float(value)) for round, value in np.asarray(known).tolist()]


def value_of(history: pd.DataFrame, metric: str) -> float:
    """A metric in the last round of a run; NaN if that does not have it."""
    return float(history[metric].iloc[-1]) if metric in history else math.nan
