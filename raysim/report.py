"""What ``raysim compare`` prints and draws, from the latest studies of MLflow experiments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from raysim.compare import caption, compare, formatted, paper_table
from raysim.config import TrackingConfig
from raysim.errors import ConfigError
from raysim.plots import check_picture, plot_comparison, plot_gains
from raysim.progress import as_rich
from raysim.statistics import gains
from raysim.tracking import Tracker, resolve_uri


@dataclass(frozen=True)
class _Study:
    """The finished runs of an experiment's latest study, grouped."""

    experiment: str
    tracker: Tracker
    history: pd.DataFrame
    """A row per run and round, with a column named as what it is grouped by."""
    parameters: dict[str, dict[str, str]]


def report(
    console: Console,
    experiments: Sequence[str],
    uri: str | None,
    by: str,
    last: int,
    form: str,
    baseline: str | None,
    picture: Path | None,
    picture_of_gains: Path | None,
) -> None:
    """See the options of ``raysim compare``.

    Raises:
        ConfigError: there is no such store, experiment or group, or a picture can't be written.
    """
    for path in (picture, picture_of_gains):
        check_picture(path)
    studies = [_read(experiment, uri, by) for experiment in experiments]
    if form == "table":
        for study in studies:
            console.print(as_rich(compare(study.history, by, last), caption(study.experiment, by, last)))
    else:
        text = paper_table({s.experiment: s.history for s in studies}, by, last, form)
        console.print(text, highlight=False, soft_wrap=True)
    for study in studies:
        if baseline is not None:
            _print_gains(console, study, by, last, baseline, form, _numbered(picture_of_gains, study, studies))
        if path := _numbered(picture, study, studies):
            plot_comparison(study.history, study.experiment, by).savefig(path)
            console.print(f"picture: {path}", highlight=False)


def _read(experiment: str, uri: str | None, by: str) -> _Study:
    tracker = Tracker(resolve_uri(TrackingConfig(uri=uri)), experiment, create=False)
    history, parameters = tracker.latest_study(), tracker.parameters()
    if by != "name":
        key = "algorithm.name" if by == "algorithm" else by
        values = {run_id: p.get(key) for run_id, p in parameters.items()}
        if all(value is None for value in values.values()):
            raise ConfigError(
                f"--group-by {by}: no run of {experiment!r} has a parameter {key!r}, such as algorithm.scale"
            )
        history = history.assign(**{by: history["run_id"].map(values).fillna("–")})
    return _Study(experiment, tracker, history, parameters)


def _print_gains(
    console: Console, study: _Study, by: str, last: int, baseline: str, form: str, picture: Path | None
) -> None:
    table, left_out = _gains(study, by, last, baseline)
    shown = pd.DataFrame(
        {
            by: table["name"],
            "seeds": table["seeds"],
            "gain": [f"{g:+.1f} [{low:+.1f}, {high:+.1f}]" for g, low, high in table[["gain", "low", "high"]].values],
            "client by client": [f"{w}/{t}/{lost}" for w, t, lost in table[["wins", "ties", "losses"]].values],
            "kB personal": table["kB"].map("{:,.1f}".format),
            "per kB": table["per kB"].map(lambda v: "–" if pd.isna(v) else f"{v:+.3g}"),
        }
    )
    over = "seeds and clients" if table["seeds"].max() > 1 else "clients (one seed)"
    title = f"{study.experiment}: points gained over {baseline}, 95 % interval over {over}; wins/ties/losses"
    if form == "table":
        console.print(as_rich(shown, title))
    else:
        text = table.to_csv(index=False, float_format="%.4f").rstrip() if form == "csv" else formatted(shown, form)
        console.print(f"\n{text}", highlight=False, soft_wrap=True)
    for group, reason in left_out.items():
        console.print(f"not compared: {group}: {reason}", highlight=False, soft_wrap=True)
    if picture:
        runs = study.history[study.history[by] == baseline]
        sensitivity = {
            column.removeprefix("sensitivity/"): float(runs[column].mean())
            for column in runs
            if column.startswith("sensitivity/") and not column.endswith("_spread") and runs[column].notna().any()
        }
        plot_gains(table, baseline, study.experiment, sensitivity).savefig(picture)
        console.print(f"picture: {picture}", highlight=False)


def _gains(study: _Study, by: str, last: int, baseline: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """``statistics.gains``, and the groups that can't be paired with the baseline, each with a reason."""
    runs = study.history.drop_duplicates("run_id")
    groups = list(dict.fromkeys(runs[by]))
    if baseline not in groups:
        raise ConfigError(f"--baseline {baseline}: {study.experiment!r} has no such group; it has: {', '.join(groups)}")
    if runs.duplicated([by, "seed"]).any():
        raise ConfigError(f"--baseline: several runs of a group of {by!r} have the same seed; group by name")
    seeds = {group: set(runs.loc[runs[by] == group, "seed"]) for group in groups}
    left_out = {}
    for group in groups:
        if differ := _differences(study, runs, by, group, baseline):
            left_out[group] = f"its {', '.join(differ)} differ from {baseline}'s, so clients can't be paired"
        elif not seeds[group] & seeds[baseline]:
            left_out[group] = f"it has no seed of {baseline}"
    groups = [group for group in groups if group not in left_out]
    if groups == [baseline]:
        why = "; ".join(f"{group}: {reason}" for group, reason in left_out.items()) or "it has no other group"
        raise ConfigError(f"--baseline {baseline}: nothing in {study.experiment!r} to compare with it: {why}")
    accuracy: dict[str, dict[int, NDArray[np.float64]]] = {group: {} for group in groups}
    kept = {}
    for group, seed, run_id in runs[[by, "seed", "run_id"]].itertuples(index=False):
        if group in accuracy:
            accuracy[group][seed] = study.tracker.client_accuracy(run_id, last)
            kept[group] = 4 * int(study.parameters[run_id]["model.state_parameters"])
    return gains(accuracy, baseline, kept), left_out


def _differences(study: _Study, runs: pd.DataFrame, by: str, group: str, baseline: str) -> list[str]:
    """What of the data and of the protocol is not as in the baseline's runs."""

    def settings(name: str) -> dict[str, str]:
        run_id = runs.loc[runs[by] == name, "run_id"].iloc[0]
        return {k: v for k, v in study.parameters[run_id].items() if k.startswith(("data.", "evaluate."))}

    own, other = settings(group), settings(baseline)
    return sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))


def _numbered(path: Path | None, study: _Study, studies: Sequence[_Study]) -> Path | None:
    """One picture per study: with several, the experiment's name goes into the file's."""
    name = re.sub(r"[^\w.-]", "_", study.experiment)
    return path.with_stem(f"{path.stem}_{name}") if path and len(studies) > 1 else path
