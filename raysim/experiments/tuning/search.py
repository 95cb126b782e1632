"""The search for the values of an entry: Optuna's study, what it has used of the budget, and which trial comes next.

A trial depends only on the trials that had ended before it, or before those that began with it: its sampler is seeded by its
number, so that a search which was interrupted goes on as if it had not been.
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
from optuna.trial import FrozenTrial, TrialState, create_trial

from raysim import seeds
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.tuning.pruning import Judgement
from raysim.experiments.tuning.space import Space, distributions, start_of

UPDATES, SECONDS, RUNS, REASON = "updates", "seconds", "runs", "reason"
"""What is kept of a trial in Optuna: client updates and seconds, ids of its runs in MLflow, why it failed."""
BATCH = "batch"
"""What is kept of a search: how many trials there are with those that run now."""


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run."""

    number: int
    trial_id: int
    values: dict[str, Any]
    finished: tuple[FrozenTrial, ...]
    """The trials that had ended before it began."""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        value: of the metric, the mean over seeds; None if it was pruned or failed.
        reason: why it failed; empty if it did not.
        judgement: what Optuna is to know of how it did while it ran, if it was judged for pruning.
    """

    value: float | None
    pruned: bool = False
    reason: str = ""
    updates: int = 0
    seconds: float = 0.0
    runs: list[str] = field(default_factory=list)
    judgement: Judgement | None = None

    def __str__(self) -> str:
        if self.pruned:
            return "pruned"
        return f"failed: {self.reason}" if self.value is None else f"{self.value:.4f}"


class Search:
    """The search for the values of one entry.

    Args:
        name: of Optuna's study, the same whenever the same search goes on.
        config: of the entry.
        storage: where Optuna keeps it.
        full_updates: the client updates of a trial that is not pruned, of the file's own rounds and cohort.
    """

    def __init__(self, name: str, config: Config, space: Space, storage: RDBStorage, full_updates: int) -> None:
        assert config.tune is not None
        self.name, self.tune, self._config, self._storage = name, config.tune, config, storage
        self.dists: dict[str, BaseDistribution] = distributions(config, space)
        self._full_updates = full_updates
        self._grid = self._combinations() if self.tune.sampler == "grid" else []
        self._study = optuna.create_study(
            study_name=name, storage=storage, direction=self.tune.direction, load_if_exists=True
        )

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, in order."""
        return self._study.get_trials(deepcopy=False)

    def kept(self, key: str) -> str | None:
        """What ``keep`` was told, maybe by an earlier process."""
        found: str | None = self._study.user_attrs.get(key)
        return found

    def keep(self, key: str, value: str) -> None:
        """Write something down beside the trials."""
        self._study.set_user_attr(key, value)

    def ask(self, most: int = 1) -> list[Asked]:
        """The trials that come next, at most so many; none once the budget is spent.

        Those of a batch know only of trials before it. An interrupted batch is completed as it would have been.
        """
        trials = self.trials
        running = [self._asked(t) for t in trials if t.state == TrialState.RUNNING]
        end = int(self.kept(BATCH) or 0)
        if not running and len(trials) >= end:
            if not self._left(0):
                return []
            end = len(trials) + most
            self.keep(BATCH, str(end))
        while len(self.trials) < end and self._left(len(running)):
            running.append(self._next())
        return running

    def tell(self, asked: Asked, outcome: Outcome) -> None:
        """A trial has ended."""
        kept = {UPDATES: outcome.updates, SECONDS: outcome.seconds, RUNS: outcome.runs}
        for key, value in {**kept, **({REASON: outcome.reason} if outcome.reason else {})}.items():
            self._storage.set_trial_user_attr(asked.trial_id, key, value)
        if outcome.judgement is not None:
            for step, value in outcome.judgement.values.items():
                self._storage.set_trial_intermediate_value(asked.trial_id, step, value)
            for key, value in outcome.judgement.attributes.items():
                self._storage.set_trial_system_attr(asked.trial_id, key, value)
        state = (
            TrialState.PRUNED if outcome.pruned else TrialState.FAIL if outcome.value is None else TrialState.COMPLETE
        )
        self._study.tell(asked.number, outcome.value if state == TrialState.COMPLETE else None, state=state)

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
            failed = sum(t.state == TrialState.FAIL for t in ended)  # whatever they did, they are paid in full
            used = sum(t.user_attrs.get(UPDATES, 0) for t in ended if t.state != TrialState.FAIL)
            return used + (failed + under_way) * self._full_updates < self.tune.trials * self._full_updates
        if self.tune.budget == "seconds":
            assert self.tune.seconds is not None
            return sum(t.user_attrs.get(SECONDS, 0.0) for t in ended) < self.tune.seconds
        return len(trials) < self.tune.trials

    def _next(self) -> Asked:
        """Draw the values of another trial, in memory, and write it down at once: a kill leaves it whole or not at all."""
        number = len(self.trials)
        values = self._grid[number] if self._grid else start_of(self._config, self.dists) if number == 0 else None
        if values is None:
            values = self._drawn_from_sequence(number) if self.tune.sampler == "quasi-random" else self._drawn(number)
        trial = create_trial(state=TrialState.RUNNING, params=values, distributions=self.dists)
        self._study.add_trial(trial)
        return self._asked(self.trials[number])

    def _asked(self, trial: FrozenTrial) -> Asked:
        finished = tuple(t for t in self.trials if t.state.is_finished() and t.number < trial.number)
        return Asked(trial.number, trial._trial_id, dict(trial.params), finished)

    def _seed(self, number: int) -> int:
        return int(seeds.stream(self._config.seed, "tuning", number).integers(2**31))

    def _drawn(self, number: int) -> dict[str, Any]:
        startup = max(1, min(10, self.tune.trials // 2))
        sampler = optuna.samplers.TPESampler(seed=self._seed(number), n_startup_trials=startup)
        study = optuna.create_study(sampler=sampler, direction=self.tune.direction)
        study.add_trials(self.trials)
        return dict(study.ask(self.dists).params)

    def _drawn_from_sequence(self, number: int) -> dict[str, Any]:
        """The ``number``-th point of a sequence, whose earlier ones have to be drawn to get it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the sampler is experimental
            sampler = optuna.samplers.QMCSampler(
                scramble=True,
                seed=self._config.seed % 2**31,
                independent_sampler=optuna.samplers.RandomSampler(seed=self._seed(number)),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
        study = optuna.create_study(sampler=sampler)
        any_values = {key: _any_of(dist) for key, dist in self.dists.items()}
        study.add_trial(create_trial(params=any_values, distributions=self.dists, value=0.0))  # it tells of the space
        return dict([study.ask(self.dists) for _ in range(number)][-1].params)

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
        return sorted((every[i] for i in order), key=lambda values: values != start)[: self.tune.trials]


def _any_of(dist: BaseDistribution) -> Any:
    return dist.choices[0] if isinstance(dist, CategoricalDistribution) else dist.low  # type: ignore[attr-defined]


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
