"""What ``raysim compare`` prints and draws, from finished runs in MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from raysim.analysis.artifacts import baselines, study_files
from raysim.analysis.compared_runs import PROTOCOL, LoadedStudy, Options, load_studies, paired_gains
from raysim.analysis.comparison import caption, compare, to_target
from raysim.analysis.divergence import rejections
from raysim.analysis.fairness import fairness
from raysim.analysis.paper_table import paper_table
from raysim.analysis.table_formats import as_rich, captioned, formatted
from raysim.analysis.tuning import ranking, ranking_caption
from raysim.errors import ConfigError
from raysim.plots.curves import plot_comparison
from raysim.plots.gains import plot_gains
from raysim.plots.style import check_picture, theme
from raysim.views import MODELS


def report(console: Console, experiments: Sequence[str], uri: str | None, options: Options) -> None:
    """Print and draw what the options of ``raysim compare`` ask for.

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
    studies = load_studies(experiments, uri, options, console, notes)
    for study in studies:
        for baseline in options.baselines:
            study.check(baseline)
    if options.form != "table":
        histories, views = {s.experiment: s.history for s in studies}, {s.experiment: s.view for s in studies}
        text = paper_table(histories, views, options.by, options.last, options.form)
        console.print(text, highlight=False, soft_wrap=True)
    for study in studies:
        if options.form == "table":
            title = caption(study.experiment, study.history, study.view, options.by)
            console.print(as_rich(compare(study.history, study.view.model, options.by, options.last), title))
            runs = len(study.runs)
            started = f"{runs} {'run' if runs == 1 else 'runs'}, started {study.reader.started()}"
            console.print(f"{started}; --run ID chooses others", style="dim", highlight=False)
        _warn(study)
        if options.fairness:
            _print_fairness(study)
        if options.target is not None:
            _print_target(study, options.target)
        for baseline in options.baselines:
            _print_gains(study, baseline, _numbered(options.plot_gains, study, studies))
        if study.options.by == "name" and (table := ranking(study.history, study.view.model, options.last)) is not None:
            caption_of = ranking_caption(study.history, study.view, study.reader.tuned_with())
            _show(study, table, table, f"{study.experiment}: the same ranked under each setting: {caption_of}")
        if options.form == "table":
            _print_fairness_and_gains(study)
        _draw(study, studies)


def _warn(study: LoadedStudy) -> None:
    """Warn of what is missing, and where groups that stand side by side in a table are not comparable."""

    def warn(text: str) -> None:
        study.notes.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)

    for line in rejections(study.history):
        warn(line)

    if missing := study.reader.missing():
        warn("not in these numbers: " + "; ".join(missing))
    counts = study.runs.groupby("name", sort=False)["seed"].nunique()
    if fewer := [f"{group} has {count}" for group, count in counts.items() if count < counts.max()]:
        warn(f"not all have {_seeds(counts.max())}: {', '.join(fewer)}")
    repeated = study.runs[study.runs.duplicated(["name", "seed"])]
    for group, seed in repeated[["name", "seed"]].itertuples(index=False):
        warn(f"{group} has several runs of seed {seed}, which count as one, with their mean")
    first, *others = study.groups
    for group in study.groups:
        if inside := study.differences(group, group):
            warn(f"the runs of {group} differ in {', '.join(inside)}: not seeds of one experiment")
    found = {group: study.differences(group, first) for group in others}
    for text in _differing({g: [k for k in keys if k.startswith(PROTOCOL)] for g, keys in found.items()}, first):
        warn(f"{text}: not the same experiment")
    for text in _differing({g: [k for k in keys if not k.startswith(PROTOCOL)] for g, keys in found.items()}, first):
        study.notes.print(f"note: {text}", style="dim", highlight=False, soft_wrap=True)


def _differing(found: dict[str, list[str]], first: str) -> list[str]:
    """A line for all groups that differ from the first in the same settings."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for group, keys in found.items():
        if keys:
            groups.setdefault(tuple(keys), []).append(group)
    return [
        f"{', '.join(names)} {'differs' if len(names) == 1 else 'differ'} from {first} in {', '.join(keys)}"
        for keys, names in groups.items()
    ]


def _print_fairness_and_gains(study: LoadedStudy) -> None:
    """Print fairness and gains over the usual baselines without being asked, or why these runs don't allow it."""
    data = study.pairable()
    usual = baselines(study.algorithms(), data) if not study.options.baselines else []
    try:
        if not study.options.fairness:
            _print_fairness(study)
        for baseline in usual:
            is_alone = list(data.values()).count(data[baseline]) == 1  # on its data, so that nothing gains over it
            if not is_alone or len(usual) == 1:
                _print_gains(study, baseline, None)
    except ConfigError as error:
        study.notes.print(f"no client-by-client comparison: {error}", highlight=False, soft_wrap=True)


def _show(study: LoadedStudy, shown: pd.DataFrame, exact: pd.DataFrame, title: str) -> None:
    """Print a table under a title, in the requested format; CSV has numbers that are not rounded for display."""
    if study.options.form == "table":
        study.console.print(as_rich(shown, title))
        return
    form = study.options.form
    csv = exact.assign(table=title).to_csv(index=False, float_format="%.6g").rstrip()
    text = csv if form == "csv" else captioned(title, form) + formatted(shown, form)
    study.console.print(f"\n{text}", highlight=False, soft_wrap=True)


def _print_fairness(study: LoadedStudy) -> None:
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
    _show(study, shown, table, f"{study.experiment}: fairness over clients, percent, means over seeds; {study.view}")


def _print_target(study: LoadedStudy, target: float) -> None:
    view = study.view
    table = to_target(study.history, view.model, target, study.options.by)
    shown = table.assign(
        reached=[f"{a} of {b}" for a, b in table[["reached", "runs"]].values],
        rounds=table["rounds"].map(lambda v: "–" if pd.isna(v) else f"{v:.1f}"),
        MB=table["MB"].map(lambda v: "–" if pd.isna(v) else f"{v:,.1f}"),
    ).drop(columns="runs")
    title = f"{study.experiment}: until the mean accuracy is {100 * target:g} %; {MODELS[view.model]}, {view.clients}"
    _show(study, shown, table, title)


def _print_gains(study: LoadedStudy, baseline: str, picture: Path | None) -> None:
    table, left_out = paired_gains(study, baseline)
    shown = pd.DataFrame(
        {
            study.options.by: table["name"],
            "gain": [f"{g:+.1f} [{low:+.1f}, {high:+.1f}]" for g, low, high in table[["gain", "low", "high"]].values],
            "interval over": [_interval_over(seeds) for seeds in table["seeds"]],
            "win/tie/loss": [f"{w}/{t}/{lost}" for w, t, lost in table[["wins", "ties", "losses"]].values],
            "Wilcoxon p": table["p"].map(lambda p: "–" if pd.isna(p) else f"{p:.2g}"),
            "n": [f"{n} pairs, {_seeds(s)}" for n, s in table[["pairs", "seeds"]].values],
            "extra kB": table["kB"].map("{:,.1f}".format),
            "per kB": table["per kB"].map(lambda v: "–" if pd.isna(v) else f"{v:+.3g}"),
        }
    )
    exact = table.assign(**{"interval over": shown["interval over"]})
    title = f"{study.experiment}: points gained over {baseline}, client by client, 95 % interval; {study.view}"
    _show(study, shown, exact, title)
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
            plot_gains(table, baseline, f"{study.experiment}\n{study.view}", sensitivity).savefig(picture)
        study.notes.print(f"picture: {picture}", highlight=False)


def _draw(study: LoadedStudy, studies: Sequence[LoadedStudy]) -> None:
    options, view = study.options, study.view
    with theme(options.background):
        if path := _numbered(options.plot, study, studies):
            title = f"{study.experiment}\n{MODELS[view.model]}, {view.clients}"
            plot_comparison(study.history, view.metric("accuracy_mean"), title, options.by).savefig(path)
            study.notes.print(f"picture: {path}", highlight=False)
        if options.plots is not None:
            rows = study.runs[[options.by, "seed", "run_id"]].itertuples(index=False)
            clients = {}
            for group, seed, run_id in rows:
                table = study.reader.clients(run_id)
                clients[group, seed] = table.assign(accuracy=study.accuracy[group][seed][table["client"].to_numpy()])
            history = study.history.assign(name=study.history[options.by])
            asked = (
                study.algorithms(),
                study.pairable(),
                study.experiment,
                view,
                view,
                options.last,
                options.baselines,
            )
            for name, data in study_files(history, clients, *asked).items():
                path = options.plots / (name if len(studies) == 1 else f"{_slug(study.experiment)}_{name}")
                path.write_bytes(data)
                study.notes.print(f"written: {path}", highlight=False)


def _numbered(path: Path | None, study: LoadedStudy, studies: Sequence[LoadedStudy]) -> Path | None:
    """The file of a study's picture: with several studies, its name includes that of the experiment."""
    return path.with_stem(f"{path.stem}_{_slug(study.experiment)}") if path and len(studies) > 1 else path


def _interval_over(seeds: int) -> str:
    return "seeds and clients" if seeds > 1 else "clients, 1 seed"


def _seeds(count: int) -> str:
    return f"{count} {'seed' if count == 1 else 'seeds'}"


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)
