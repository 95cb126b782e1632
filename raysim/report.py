"""What ``raysim compare`` prints and draws, from the latest studies of MLflow experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console

from raysim.compare import compare, paper_table
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
            console.print(as_rich(compare(study.history, by, last), _caption(study.experiment, last)))
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
    table = _gains(study, by, last, baseline)
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
    title = f"{study.experiment}: points gained over {baseline}, 95 % interval over seeds and clients; wins/ties/losses"
    if form == "csv":
        console.print(table.to_csv(index=False, float_format="%.4f").rstrip(), highlight=False, soft_wrap=True)
    elif form == "table":
        console.print(as_rich(shown, title))
    else:
        console.print(_markdown(shown), highlight=False, soft_wrap=True)
    if picture:
        runs = study.history[study.history[by] == baseline]
        sensitivity = {
            column.removeprefix("sensitivity/"): float(runs[column].mean())
            for column in runs
            if column.startswith("sensitivity/") and not column.endswith("_spread") and runs[column].notna().any()
        }
        plot_gains(table, baseline, study.experiment, sensitivity).savefig(picture)
        console.print(f"picture: {picture}", highlight=False)


def _gains(study: _Study, by: str, last: int, baseline: str) -> pd.DataFrame:
    runs = study.history.drop_duplicates("run_id")
    groups = list(dict.fromkeys(runs[by]))
    if baseline not in groups:
        raise ConfigError(f"--baseline {baseline}: {study.experiment!r} has no such group; it has: {', '.join(groups)}")
    if runs.duplicated([by, "seed"]).any():
        raise ConfigError(f"--baseline: several runs of a group of {by!r} have the same seed; group by name")
    splits = {
        tuple((k, v) for k, v in sorted(p.items()) if k.startswith(("data.", "evaluate.")))
        for p in study.parameters.values()
    }
    if len(splits) > 1:
        differ = sorted({key for a in splits for key, value in a if any((key, value) not in b for b in splits)})
        raise ConfigError(
            f"--baseline: runs of {study.experiment!r} differ in {', '.join(differ)}, so clients can't be paired"
        )
    accuracy: dict[str, dict[int, object]] = {group: {} for group in groups}
    kept = {}
    for group, seed, run_id in runs[[by, "seed", "run_id"]].itertuples(index=False):
        accuracy[group][seed] = study.tracker.client_accuracy(run_id, last)
        kept[group] = 4 * int(study.parameters[run_id]["model.state_parameters"])
    return gains(accuracy, baseline, kept)  # type: ignore[arg-type]


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---", *["---:"] * (len(table.columns) - 1)], *table.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _caption(experiment: str, last: int) -> str:
    when = "last round" if last == 1 else f"mean of the last {last} evaluated rounds"
    return f"{experiment}: {when}, percent, mean ± standard deviation over seeds"


def _numbered(path: Path | None, study: _Study, studies: Sequence[_Study]) -> Path | None:
    """One picture per study: with several, the experiment's name goes into the file's."""
    return path.with_stem(f"{path.stem}_{study.experiment}") if path and len(studies) > 1 else path
