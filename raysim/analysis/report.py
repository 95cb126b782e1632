"""What ``raysim compare`` prints and draws, from finished runs in MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from raysim.analysis.comparison import Last, caption, captioned, compare, formatted, paper_table, rounds_shown
from raysim.config.schema import TrackingConfig
from raysim.tracking.description import WHEN
from raysim.errors import ConfigError
from raysim.tracking.mlflow_reader import FinishedRuns
from raysim.plots import Theme, check_picture, plot_comparison, plot_gains, theme
from raysim.cli.progress import as_rich
from raysim.analysis.statistics import fairness, gains, to_target
from raysim.analysis.summary import baselines, study_files
from raysim.tracking.mlflow_store import resolve_uri

PROTOCOL = ("data.", "evaluate.", "cohort.", "rounds", "train.local_epochs", "dataset")
"""Settings in which runs that are compared should agree; ``dataset`` is the digest of the samples."""
PAIRED = ("data.", "evaluate.", "dataset")
"""Those in which groups must agree for their clients to be paired."""


@dataclass(frozen=True)
class Options:
    """Of ``raysim compare``; see its help."""

    by: str = "name"
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
class _Study:
    """Finished runs of an experiment, grouped."""

    experiment: str
    tracker: FinishedRuns
    history: pd.DataFrame
    """A row per run and round, with a column named as what it is grouped by."""
    parameters: dict[str, dict[str, str]]
    options: Options
    console: Console
    notes: Console
    """Warnings, and what was written; apart from a table that goes into a file."""

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row per run."""
        return self.history.drop_duplicates("run_id")

    @cached_property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(self.runs[self.options.by]))

    @cached_property
    def accuracy(self) -> dict[str, dict[int, NDArray[np.float64]]]:
        """Of every client, by group and seed."""
        by = self.options.by
        if self.runs.duplicated([by, "seed"]).any():
            raise ConfigError(f"several runs of a group of {by!r} have the same seed; group by name")
        accuracy: dict[str, dict[int, NDArray[np.float64]]] = {group: {} for group in self.groups}
        for group, seed, run_id in self.runs[[by, "seed", "run_id"]].itertuples(index=False):
            accuracy[group][seed] = self.tracker.client_accuracy(run_id, self.options.last)
        return accuracy

    def algorithms(self) -> dict[str, str]:
        """By group, that of its first run."""
        first = self.runs.drop_duplicates(self.options.by).set_index(self.options.by)["run_id"]
        return {group: self.parameters[run_id].get("algorithm.name", "") for group, run_id in first.items()}

    def check(self, baseline: str) -> None:
        """Raises ConfigError if there is no such group."""
        if baseline not in self.groups:
            raise ConfigError(
                f"--baseline {baseline}: {self.experiment!r} has no such group; it has: {', '.join(self.groups)}"
            )

    def pairable(self) -> dict[str, str]:
        """By group, the data and the evaluation of its runs; clients of groups in which it is equal can be paired."""
        found = {}
        for group in self.groups:
            own = {key: sorted(values) for key, values in self._settings(group).items() if key.startswith(PAIRED)}
            found[group] = str(sorted(own.items()))
        return found

    def differences(self, group: str, other: str) -> list[str]:
        """What of the data and the protocol is not equal in the runs of two groups; of one, in its own runs."""
        own, its = self._settings(group), self._settings(other)
        if group == other:
            return sorted(key for key, values in own.items() if len(values) > 1)
        return sorted(key for key in own.keys() | its.keys() if own.get(key) != its.get(key))

    def _settings(self, group: str) -> dict[str, set[str]]:
        """All values of the keys in which the runs of a group should agree."""
        found: dict[str, set[str]] = {}
        for run_id in self.runs.loc[self.runs[self.options.by] == group, "run_id"]:
            for key, value in self.parameters[run_id].items():
                if key.startswith(PROTOCOL) and key != self.options.by:
                    found.setdefault(key, set()).add(value)
        return found


def report(console: Console, experiments: Sequence[str], uri: str | None, options: Options) -> None:
    """See the options of ``raysim compare``.

    Raises:
        ConfigError: there is no such store, experiment, run or group, or a picture can't be written.
    """
    for path in (options.plot, options.plot_gains):
        check_picture(path)
    if options.plots is not None:
        try:
            options.plots.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--plots: {options.plots} can't be made: {error}") from error
    notes = console if options.form == "table" else Console(stderr=True, markup=False)
    studies = [_read(experiment, uri, options, console, notes) for experiment in experiments]
    for study in studies:
        for baseline in options.baselines:
            study.check(baseline)
    if options.form != "table":
        text = paper_table({s.experiment: s.history for s in studies}, options.by, options.last, options.form)
        console.print(text, highlight=False, soft_wrap=True)
    for study in studies:
        if options.form == "table":
            title = caption(study.experiment, study.history, options.by, options.last)
            console.print(as_rich(compare(study.history, options.by, options.last), title))
            runs = len(study.runs)
            started = f"{runs} {'run' if runs == 1 else 'runs'}, started {study.tracker.started()}"
            console.print(f"{started}; --run ID chooses others", style="dim", highlight=False)
        _warn(study)
        if options.fairness:
            _print_fairness(study)
        if options.target is not None:
            _print_target(study, options.target)
        for baseline in options.baselines:
            _print_gains(study, baseline, _numbered(options.plot_gains, study, studies))
        if options.form == "table":
            _print_what_can_be_told(study)
        _draw(study, studies)


def _read(experiment: str, uri: str | None, options: Options, console: Console, notes: Console) -> _Study:
    tracker = FinishedRuns(resolve_uri(TrackingConfig(uri=uri)), experiment)
    if options.runs:
        tracker.choose(options.runs)
    history, parameters, by = tracker.latest_study(), tracker.parameters(), options.by
    if by != "name":
        key = "algorithm.name" if by == "algorithm" else by
        values = {run_id: p.get(key) for run_id, p in parameters.items()}
        if all(value is None for value in values.values()):
            raise ConfigError(
                f"--group-by {by}: no run of {experiment!r} has a parameter {key!r}, such as algorithm.scale"
            )
        history = history.assign(**{by: history["run_id"].map(values).fillna("–")})
    return _Study(experiment, tracker, history, parameters, options, console, notes)


def _warn(study: _Study) -> None:
    """Groups side by side in one table look comparable; say it where they are not."""
    first, *others = study.groups
    for group in study.groups:
        if inside := study.differences(group, group):
            text = f"warning: the runs of {group} differ in {', '.join(inside)}: they are no seeds of one experiment"
            study.notes.print(text, style="yellow", highlight=False, soft_wrap=True)
    differing: dict[tuple[str, ...], list[str]] = {}
    for group in others:
        if keys := tuple(study.differences(group, first)):
            differing.setdefault(keys, []).append(group)
    for keys, groups in differing.items():
        verb = "differs" if len(groups) == 1 else "differ"
        text = f"warning: {', '.join(groups)} {verb} from {first} in {', '.join(keys)}: not the same experiment"
        study.notes.print(text, style="yellow", highlight=False, soft_wrap=True)


def _print_what_can_be_told(study: _Study) -> None:
    """Fairness and the gains over the usual baselines, unasked: a reason in place of what these runs don't allow."""
    data = study.pairable()
    usual = baselines(study.algorithms(), data) if not study.options.baselines else []
    try:
        if not study.options.fairness:
            _print_fairness(study)
        for baseline in usual:
            if (
                list(data.values()).count(data[baseline]) > 1 or len(usual) == 1
            ):  # a method alone on its data has no gain
                _print_gains(study, baseline, None)
    except ConfigError as error:
        study.notes.print(f"not told, client by client: {error}", highlight=False, soft_wrap=True)


def _show(study: _Study, shown: pd.DataFrame, exact: pd.DataFrame, title: str) -> None:
    """A table under a title, in the format that is asked for; CSV has the numbers themselves."""
    if study.options.form == "table":
        study.console.print(as_rich(shown, title))
        return
    form = study.options.form
    csv = exact.assign(table=title).to_csv(index=False, float_format="%.6g").rstrip()
    text = csv if form == "csv" else captioned(title, form) + formatted(shown, form)
    study.console.print(f"\n{text}", highlight=False, soft_wrap=True)


def _print_fairness(study: _Study) -> None:
    table = fairness(study.accuracy)
    shown = pd.DataFrame(
        {
            study.options.by: table["name"],
            "std over clients": table["std"].map("{:.1f}".format),
            "worst decile": table["worst decile"].map("{:.1f}".format),
            "best decile": table["best decile"].map("{:.1f}".format),
            "Gini": table["gini"].map("{:.3f}".format),
            "n": [f"{c} clients, {_seeds(s)}" for c, s in table[["clients", "seeds"]].values],
        }
    )
    when = rounds_shown(study.options.last)
    _show(study, shown, table, f"{study.experiment}: fairness over clients, percent, means over seeds; {when}")


def _print_target(study: _Study, target: float) -> None:
    table = to_target(study.history, target, study.options.by)
    shown = table.assign(
        reached=[f"{a} of {b}" for a, b in table[["reached", "runs"]].values],
        rounds=table["rounds"].map(lambda v: "–" if pd.isna(v) else f"{v:.1f}"),
        MB=table["MB"].map(lambda v: "–" if pd.isna(v) else f"{v:,.1f}"),
    ).drop(columns="runs")
    title = f"{study.experiment}: until the mean accuracy is {100 * target:g} %"
    _show(study, shown, table, title)


def _print_gains(study: _Study, baseline: str, picture: Path | None) -> None:
    table, left_out = _gains(study, baseline)
    shown = pd.DataFrame(
        {
            study.options.by: table["name"],
            "gain": [f"{g:+.1f} [{low:+.1f}, {high:+.1f}]" for g, low, high in table[["gain", "low", "high"]].values],
            "win/tie/loss": [f"{w}/{t}/{lost}" for w, t, lost in table[["wins", "ties", "losses"]].values],
            "Wilcoxon p": table["p"].map(lambda p: "–" if pd.isna(p) else f"{p:.2g}"),
            "n": [f"{n} pairs, {_seeds(s)}" for n, s in table[["pairs", "seeds"]].values],
            "extra kB": table["kB"].map("{:,.1f}".format),
            "per kB": table["per kB"].map(lambda v: "–" if pd.isna(v) else f"{v:+.3g}"),
        }
    )
    over = "seeds and clients" if table["seeds"].max() > 1 else "clients (one seed)"
    when = rounds_shown(study.options.last)
    title = f"{study.experiment}: points gained over {baseline}, client by client, 95 % interval over {over}; {when}"
    _show(study, shown, table, title)
    for group, reason in left_out.items():
        study.notes.print(f"not compared: {group}: {reason}", highlight=False, soft_wrap=True)
    if picture:
        runs = study.history[study.history[study.options.by] == baseline]
        sensitivity = {
            column.removeprefix("sensitivity/"): float(runs[column].mean())
            for column in runs
            if column.startswith("sensitivity/") and not column.endswith("_spread") and runs[column].notna().any()
        }
        with theme(study.options.background):
            plot_gains(table, baseline, f"{study.experiment}, {when}", sensitivity).savefig(picture)
        study.notes.print(f"picture: {picture}", highlight=False)


def _gains(study: _Study, baseline: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """``statistics.gains``, and the groups that can't be paired with the baseline, each with a reason."""
    groups, by = study.groups, study.options.by
    left_out = {}
    seeds = {group: set(study.runs.loc[study.runs[by] == group, "seed"]) for group in groups}
    for group in groups:
        differ = [key for key in study.differences(group, baseline) if key.startswith(PAIRED)]
        if differ:
            left_out[group] = f"in {', '.join(differ)} it differs from {baseline}, so clients can't be paired"
        elif not seeds[group] & seeds[baseline]:
            left_out[group] = f"it has no seed of {baseline}"
    if left_out.keys() | {baseline} == set(groups):
        why = "; ".join(f"{group}: {reason}" for group, reason in left_out.items()) or "it has no other group"
        raise ConfigError(f"--baseline {baseline}: nothing in {study.experiment!r} to compare with it: {why}")
    kept = {group: study.accuracy[group] for group in groups if group not in left_out}
    sizes = {
        group: 4 * int(study.parameters[run_id]["model.state_parameters"])
        for group, run_id in study.runs[[by, "run_id"]].itertuples(index=False)
    }
    return gains(kept, baseline, sizes), left_out


def _draw(study: _Study, studies: Sequence[_Study]) -> None:
    options = study.options
    protocols = {WHEN.get(p.get("evaluate.protocol", ""), "") for p in study.parameters.values()}
    title = study.experiment + (
        f": clients evaluated {protocols.pop()} aggregation" if len(protocols - {""}) == 1 else ""
    )
    with theme(options.background):
        if path := _numbered(options.plot, study, studies):
            plot_comparison(study.history, title, options.by).savefig(path)
            study.notes.print(f"picture: {path}", highlight=False)
        if options.plots is not None:
            rows = study.runs[[options.by, "seed", "run_id"]].itertuples(index=False)
            clients = {}
            for group, seed, run_id in rows:
                table = study.tracker.clients(run_id)
                clients[group, seed] = table.assign(accuracy=study.accuracy[group][seed][table["client"].to_numpy()])
            history = study.history.assign(name=study.history[options.by])
            asked = (study.algorithms(), study.pairable(), title, options.last, options.baselines)
            for name, data in study_files(history, clients, *asked).items():
                path = options.plots / (name if len(studies) == 1 else f"{_slug(study.experiment)}_{name}")
                path.write_bytes(data)
                study.notes.print(f"written: {path}", highlight=False)


def _numbered(path: Path | None, study: _Study, studies: Sequence[_Study]) -> Path | None:
    """One picture per study: with several, the experiment's name goes into the file's."""
    return path.with_stem(f"{path.stem}_{_slug(study.experiment)}") if path and len(studies) > 1 else path


def _seeds(count: int) -> str:
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)
