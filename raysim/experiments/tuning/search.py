"""The search for the values of an entry: Optuna's study, what it has used of the budget, and which trial comes next.

A trial depends only on the trials before it: its sampler is seeded by its number, so that a search which was interrupted
goes on as if it had not been.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import get_param_importances
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from raysim import seeds
from raysim.config.schema import Config
from raysim.config.sections.tuning import TuneConfig
from raysim.errors import ConfigError
from raysim.experiments.tuning.space import Space, distributions, start_of

PRUNED = "pruned"
"""What a run that is to be pruned leaves in Optuna: after how many rounds."""
UPDATES, SECONDS, RUNS, REASON, RESULTS = "updates", "seconds", "runs", "reason", "results"
"""What is kept of a trial in Optuna: client updates and seconds, ids of its runs in MLflow, why it failed, value by seed."""


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run."""

    number: int
    trial_id: int
    values: dict[str, Any]
    study: str
    """The name of Optuna's study."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        value: of the metric, the mean over seeds; None if it was pruned or failed.
        reason: why it failed; empty if it did not.
        results: the metric by seed.
    """

    value: float | None
    pruned: bool = False
    reason: str = ""
    updates: int = 0
    seconds: float = 0.0
    runs: list[str] = field(default_factory=list)
    results: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.pruned:
            return "pruned"
        return f"failed: {self.reason}" if self.value is None else f"{self.value:.4f}"


def pruner_of(tune: TuneConfig, rounds: int) -> optuna.pruners.BasePruner:
    """Optuna's pruner for runs of so many rounds."""
    if tune.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=rounds)
    return optuna.pruners.MedianPruner() if tune.pruner == "median" else optuna.pruners.NopPruner()


class Search:
    """The search for the values of one entry.

    Args:
        name: of Optuna's study, the same whenever the same search goes on.
        config: of the entry; ``full_updates`` are the client updates of a trial of it that is not pruned.
        storage: where Optuna keeps it.
    """

    def __init__(self, name: str, config: Config, space: Space, storage: RDBStorage) -> None:
        assert config.tune is not None
        self.name, self.tune, self._config, self._storage = name, config.tune, config, storage
        self.dists: dict[str, BaseDistribution] = distributions(config, space)
        self.full_updates = len(self.tune.seeds) * config.rounds * config.cohort_size
        self._pruner = pruner_of(self.tune, config.rounds)
        self._grid = self._combinations() if self.tune.sampler == "grid" else []
        self._study = self._open()

    def _open(self, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that samplers are experimental
            return optuna.create_study(
                study_name=self.name,
                storage=self._storage,
                sampler=sampler or optuna.samplers.RandomSampler(seed=0),
                pruner=self._pruner,
                direction=self.tune.direction,
                load_if_exists=True,
            )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, in order."""
        return [t for t in self._study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    def kept(self, key: str) -> str | None:
        """What ``keep`` was told, maybe by an earlier process."""
        found: str | None = self._study.user_attrs.get(key)
        return found

    def keep(self, key: str, value: str) -> None:
        """Write something down beside the trials."""
        self._study.set_user_attr(key, value)

    def ask(self, most: int = 1) -> list[Asked]:
        """The trials that come next, at most so many; those first that were interrupted. None once the budget is spent."""
        asked = [self._asked(t) for t in self.trials if t.state == TrialState.RUNNING]
        while len(asked) < most and self._left(len(asked)):
            asked.append(self._next())
        return asked

    def tell(self, asked: Asked, outcome: Outcome) -> None:
        """A trial has ended."""
        kept = {UPDATES: outcome.updates, SECONDS: outcome.seconds, RUNS: outcome.runs, RESULTS: outcome.results}
        for key, value in {**kept, **({REASON: outcome.reason} if outcome.reason else {})}.items():
            self._storage.set_trial_user_attr(asked.trial_id, key, value)
        state = (
            TrialState.PRUNED if outcome.pruned else TrialState.FAIL if outcome.value is None else TrialState.COMPLETE
        )
        self._study.tell(asked.number, outcome.value if state == TrialState.COMPLETE else None, state=state)

    def was_pruned(self, asked: Asked) -> bool:
        """Whether a run of the trial was told to end."""
        return PRUNED in self._storage.get_trial(asked.trial_id).user_attrs

    @property
    def best(self) -> FrozenTrial | None:
        """The trial with the best value; None if none was completed. Of equal ones the first."""
        done = [t for t in self.trials if t.state == TrialState.COMPLETE and t.value is not None]
        sign = -1 if self.tune.direction == "maximize" else 1
        return min(done, key=lambda t: (sign * float(t.value or 0.0), t.number), default=None)

    def importances(self) -> dict[str, float]:
        """How much each key has to do with the value (Optuna's fANOVA), adding up to 1; empty if too little is known."""
        done = [t for t in self.trials if t.state == TrialState.COMPLETE]
        if len(self.dists) < 2 or len(done) < 4 or len({t.value for t in done}) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(get_param_importances(self._study, evaluator=evaluator, params=list(self.dists)))

    # The next trial.

    def _left(self, under_way: int) -> bool:
        """Whether the budget has room for another trial beside those that are under way."""
        trials = self.trials
        ended = [t for t in trials if t.state.is_finished()]
        if self._grid and len(trials) >= len(self._grid):
            return False
        if self.tune.budget == "updates":
            used = sum(t.user_attrs.get(UPDATES, 0) for t in ended) + under_way * self.full_updates
            return used < self.tune.trials * self.full_updates
        if self.tune.budget == "seconds":
            assert self.tune.seconds is not None
            return sum(t.user_attrs.get(SECONDS, 0.0) for t in ended) < self.tune.seconds
        return len(trials) < self.tune.trials

    def _next(self) -> Asked:
        number = len(self.trials)
        if not any(t.state == TrialState.WAITING for t in self._study.get_trials(deepcopy=False)):
            fixed = self._grid[number] if self._grid else start_of(self._config, self.dists) if number == 0 else None
            if fixed is not None:
                self._study.enqueue_trial(fixed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self._open(self._sampler(number)).ask(self.dists)
        return self._asked(self._study.get_trials(deepcopy=False)[trial.number])

    def _asked(self, trial: FrozenTrial) -> Asked:
        return Asked(trial.number, trial._trial_id, dict(trial.params), self.name)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        own = int(seeds.stream(self._config.seed, "tuning", number).integers(2**31))
        if self.tune.sampler == "quasi-random":  # one sequence, of which each trial is a point
            independent = optuna.samplers.RandomSampler(seed=own)
            return optuna.samplers.QMCSampler(
                scramble=True,
                seed=self._config.seed % 2**31,
                independent_sampler=independent,
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
        startup = max(1, min(10, self.tune.trials // 2))
        return optuna.samplers.TPESampler(seed=own, n_startup_trials=startup)

    def _combinations(self) -> list[dict[str, Any]]:
        """Every combination of a space of lists, in a random order that begins with the configuration as it is.

        Raises:
            ConfigError: the space has a range.
        """
        lists: list[Sequence[Any]] = []
        for key, dist in self.dists.items():
            if not isinstance(dist, CategoricalDistribution):
                raise ConfigError(f"tune.sampler: a grid needs a list of values for every key, and {key} has a range")
            lists.append(dist.choices)
        every = [dict(zip(self.dists, values, strict=True)) for values in itertools.product(*lists)]
        order = seeds.stream(self._config.seed, "tuning").permutation(len(every))
        start = start_of(self._config, self.dists)
        return sorted((every[i] for i in order), key=lambda values: values != start)


def as_row(trial: FrozenTrial) -> Mapping[str, Any]:
    """A trial as a row of the tables of a tuning."""
    attributes = trial.user_attrs
    return {
        "trial": trial.number + 1,
        "state": {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "interrupted"),
        "value": np.nan if trial.value is None or trial.state != TrialState.COMPLETE else trial.value,
        UPDATES: attributes.get(UPDATES, 0),
        SECONDS: attributes.get(SECONDS, 0.0),
        "values": json.dumps(trial.params),
        RUNS: " ".join(attributes.get(RUNS, [])),
        REASON: attributes.get(REASON, ""),
    }
