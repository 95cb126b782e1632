"""The finished runs of a study, read from MLflow and grouped for a comparison: which of them can be compared with which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from raysim.analysis.comparison import Last, evaluated_rounds, shown_rounds, view_of
from raysim.analysis.paired_tests import gains
from raysim.config.locations import resolve_uri
from raysim.config.sections.running import TrackingConfig
from raysim.errors import ConfigError
from raysim.plots.style import Theme
from raysim.tracking.mlflow_reader import FinishedRuns
from raysim.views import MODELS, ClientSet, Model, View, headline

PROTOCOL = ("data.", "evaluate.", "cohort.", "rounds", "train.local_epochs", "dataset", "partition")
"""Settings in which runs that are compared should agree; ``dataset`` is the digest of the samples, ``partition`` that of
their division among clients, which depends on the seed."""
TRAINING = ("model.", "train.")
"""Settings that a study may vary on purpose, so that they are named where they differ; the runs of a group should agree."""
SIZES = ("model.shared_parameters", "model.personal_parameters", "model.state_parameters")
"""What follows from the settings and is logged with them."""
PAIRED = ("data.", "evaluate.", "dataset", "partition")
"""Settings in which groups must agree for their clients to be paired."""
HEADLINE_KEY = "evaluate.protocol"
"""It chooses what is shown, and every run has both: ``views.headline``."""
CODE = "code"
"""The digest of the algorithm's source, in which the runs of one group should agree."""


@dataclass(frozen=True)
class Options:
    """The options of ``raysim compare``; see its help."""

    by: str = "name"
    protocol: str | None = None
    last: Last = 1
    form: str = "table"
    baselines: tuple[str, ...] = ()
    fairness: bool = False
    target: float | None = None
    runs: tuple[str, ...] = ()
    plot: Path | None = None
    plot_gains: Path | None = None
    plots: Path | None = None
    background: Theme = "light"


@dataclass(frozen=True)
class LoadedStudy:
    """Finished runs of an experiment, grouped."""

    experiment: str
    reader: FinishedRuns
    history: pd.DataFrame
    """A row per run and round, with a column named after the key that runs are grouped by."""
    parameters: dict[str, dict[str, str]]
    view: View
    options: Options
    console: Console
    notes: Console
    """For warnings and names of written files, kept apart from a table that may be redirected into a file."""

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run."""
        return self.history.drop_duplicates("run_id")

    @cached_property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(self.runs[self.options.by]))

    @cached_property
    def accuracy(self) -> dict[str, dict[int, NDArray[np.float64]]]:
        """The accuracy of every client, by group and seed, NaN for those that ``view`` is not about.

        Raises:
            ConfigError: the rounds have different clients, or a group has several runs of a seed.
        """
        by, last = self.options.by, self.options.last
        if self.view.clients.kind == "cohort" and last != 1:
            raise ConfigError(
                f"with evaluate.clients: cohort every round is about other clients, so that nothing can be said of one of "
                f"them over {'the best round of each run' if last == 'best' else f'{last} rounds'}; --last 1 shows the "
                "last cohort, evaluate.clients: all evaluates everyone"
            )
        if self.runs.duplicated([by, "seed"]).any():
            raise ConfigError(f"several runs of a group of {by!r} have the same seed; group by name")
        accuracy: dict[str, dict[int, NDArray[np.float64]]] = {group: {} for group in self.groups}
        for group, seed, run_id in self.runs[[by, "seed", "run_id"]].itertuples(index=False):
            rounds = shown_rounds(self.history[self.history["run_id"] == run_id], self.view.model, last)
            accuracy[group][seed] = self.reader.client_accuracy(run_id, self.view.model, rounds)
        return accuracy

    def algorithms(self) -> dict[str, str]:
        """The algorithm of each group's first run, by group."""
        first = self.runs.drop_duplicates(self.options.by).set_index(self.options.by)["run_id"]
        return {group: self.parameters[run_id].get("algorithm.name", "") for group, run_id in first.items()}

    def check(self, baseline: str) -> None:
        """Raises ConfigError if there is no such group."""
        if baseline not in self.groups:
            raise ConfigError(
                f"--baseline {baseline}: {self.experiment!r} has no such group; it has: {', '.join(self.groups)}"
            )

    def pairable(self) -> dict[str, str]:
        """The data and evaluation settings of each group, as a text; where it is equal, clients can be paired."""
        settings = {group: self._settings(group) for group in self.groups}
        # The division of a seed is that of other groups only where these have the seed, too.
        shared = set.intersection(*(set(own) for own in settings.values()))
        found = {}
        for group, own in settings.items():
            kept = {
                k: v for k, v in own.items() if k.startswith(PAIRED) and (k in shared or not k.startswith("partition"))
            }
            found[group] = str(sorted((key, sorted(values)) for key, values in kept.items()))
        return found

    def differences(self, group: str, other: str) -> list[str]:
        """The settings that differ between two groups, or between the runs of one group: all but the algorithm's own."""
        own, its = self._settings(group), self._settings(other)
        if group == other:
            return sorted(key for key, values in own.items() if len(values) > 1)
        keys = {key for key in own.keys() | its.keys() if not key.startswith(("partition", CODE))}
        keys |= {key for key in own.keys() & its.keys() if key.startswith("partition")}  # of seeds that both have
        return sorted(key for key in keys if own.get(key) != its.get(key))

    def _settings(self, group: str) -> dict[str, set[str]]:
        """All values of the keys in which the runs of a group should agree."""
        found: dict[str, set[str]] = {}
        of_group = self.runs.loc[self.runs[self.options.by] == group, ["run_id", "seed"]]
        for run_id, seed in of_group.itertuples(index=False):
            for key, value in self.parameters[run_id].items():
                # An empty digest is that of a run of an earlier version, which logged none: nothing is known of it.
                known = bool(value) or key not in ("partition", CODE)
                left_out = (*SIZES, HEADLINE_KEY, self.options.by)
                if known and key.startswith((*PROTOCOL, *TRAINING, CODE)) and key not in left_out:
                    name = f"partition of seed {seed}" if key == "partition" else key
                    found.setdefault(name, set()).add(value)
        return found


def load_studies(
    experiments: Sequence[str], uri: str | None, options: Options, console: Console, notes: Console
) -> list[LoadedStudy]:
    """The studies that stand side by side in a comparison; their numbers are about the same model.

    Raises:
        ConfigError: there is no such store, experiment or run, or its runs are about different clients.
    """
    readers = {experiment: FinishedRuns(resolve_uri(TrackingConfig(uri=uri)), experiment) for experiment in experiments}
    if options.runs:
        for reader in readers.values():
            reader.choose(options.runs)
    runs = [p for reader in readers.values() for p in reader.parameters().values()]
    protocols = {options.protocol} if options.protocol else {p.get(HEADLINE_KEY, "paper") for p in runs}
    model = headline(protocols)
    if len(protocols) > 1:
        text = f"runs differ in {HEADLINE_KEY}: all numbers are {MODELS[model]}; --protocol chooses"
        notes.print(f"warning: {text}", style="yellow", highlight=False)
    return [_load_study(name, reader, model, options, console, notes) for name, reader in readers.items()]


def _load_study(
    experiment: str, reader: FinishedRuns, model: Model, options: Options, console: Console, notes: Console
) -> LoadedStudy:
    history, parameters, by = reader.latest_study(), reader.parameters(), options.by
    _refuse_earlier(history, parameters)
    view = view_of(history, model, _clients(experiment, list(parameters.values())), options.last)
    if by != "name":
        key = "algorithm.name" if by == "algorithm" else by
        values = {run_id: p.get(key) for run_id, p in parameters.items()}
        if all(value is None for value in values.values()):
            raise ConfigError(
                f"--group-by {by}: no run of {experiment!r} has a parameter {key!r}, such as algorithm.scale"
            )
        history = history.assign(**{by: history["run_id"].map(values).fillna("–")})
    return LoadedStudy(experiment, reader, history, parameters, view, options, console, notes)


def _refuse_earlier(history: pd.DataFrame, parameters: dict[str, dict[str, str]]) -> None:
    """Earlier versions had one family of metrics, under the name of the first, whatever ``evaluate.protocol`` asked for."""
    with_both = set(evaluated_rounds(history, "aggregated")["run_id"])
    for run_id, own in parameters.items():
        if own.get(HEADLINE_KEY) == "aggregated" and run_id not in with_both:
            raise ConfigError(
                f"run {run_id} was logged by an earlier version of raysim, whose personalized/... is after aggregation in "
                "this run and as trained in others; run it again"
            )


def _clients(experiment: str, runs: list[dict[str, str]]) -> ClientSet:
    """The clients that the metrics of all these runs are about."""
    asked = sorted({p.get("evaluate.clients", "all") for p in runs})
    if len(asked) > 1:
        raise ConfigError(
            f"{experiment!r}: its runs differ in evaluate.clients ({', '.join(asked)}); accuracies of different clients "
            "can't stand in one table. --run ID chooses runs"
        )
    return ClientSet.asked(asked[0], (int(p["data.num_clients"]) for p in runs if "data.num_clients" in p))


def paired_gains(study: LoadedStudy, baseline: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """``paired_tests.gains``, and the groups that can't be paired with the baseline, each with the reason."""
    groups, by = study.groups, study.options.by
    left_out = {}
    seeds = {group: set(study.runs.loc[study.runs[by] == group, "seed"]) for group in groups}
    for group in groups:
        keys = (*PAIRED, "cohort.") if study.view.clients.kind == "cohort" else PAIRED
        differ = [key for key in study.differences(group, baseline) if key.startswith(keys)]
        if differ:
            left_out[group] = f"in {', '.join(differ)} it differs from {baseline}, so clients can't be paired"
        elif not seeds[group] & seeds[baseline]:
            left_out[group] = f"it shares no seed with {baseline}"
    if left_out.keys() | {baseline} == set(groups):
        why = "; ".join(f"{group}: {reason}" for group, reason in left_out.items()) or "it has no other group"
        raise ConfigError(f"--baseline {baseline}: nothing in {study.experiment!r} to compare with it: {why}")
    kept = {group: study.accuracy[group] for group in groups if group not in left_out}
    sizes = {
        group: 4 * int(study.parameters[run_id]["model.state_parameters"])
        for group, run_id in study.runs[[by, "run_id"]].itertuples(index=False)
    }
    return gains(kept, baseline, sizes), left_out
