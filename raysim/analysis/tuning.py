"""The report of a tuning: what each entry used and found, and whether a method's lead survives equal tuning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from raysim.analysis.comparison import Last, samples
from raysim.analysis.paired_tests import student
from raysim.analysis.table_formats import formatted
from raysim.views import Model

Setting = Literal["default", "lr only", "tuned", "tuned, lr only"]
SETTINGS: tuple[Setting, ...] = ("default", "lr only", "tuned")
"""How an entry's values were chosen: as they were in the file; the learning rate tuned alone; all keys tuned. An entry whose
only key is the learning rate is ``tuned, lr only``, which counts as both."""
SEPARATOR = " · "


def entry_name(entry: str, setting: Setting) -> str:
    """The name of an entry in the study of tuned values."""
    return f"{entry}{SEPARATOR}{setting}"


def of_name(name: str) -> tuple[str, list[Setting]] | None:
    """The entry and the settings that a name of such a study is about; None if it is none."""
    entry, separator, setting = name.rpartition(SEPARATOR)
    if not separator or setting not in (*SETTINGS, "tuned, lr only"):
        return None
    return entry, ["lr only", "tuned"] if setting == "tuned, lr only" else [setting]


def ranking(history: pd.DataFrame, model: Model, last: Last = 1) -> pd.DataFrame | None:
    """A row per method, best when tuned first: place, mean accuracy in percent and its interval, under each setting.

    ``history`` is that of a study of tuned values, whose numbers are on test samples; None if it is no such study.
    """
    cells: dict[Setting, dict[str, list[float]]] = {setting: {} for setting in SETTINGS}
    for name, runs in history.groupby("name", sort=False):
        if (found := of_name(str(name))) is None:
            return None
        values = samples(runs, model, "name", last)[f"{model}/accuracy_mean"].dropna().tolist()
        for setting in found[1]:
            cells[setting][found[0]] = values
    known = {setting: of for setting, of in cells.items() if of}
    if len(known) < 2:
        return None
    methods = list(dict.fromkeys(method for of in known.values() for method in of))
    columns: dict[str, dict[str, str]] = {}
    places: dict[str, int] = {}
    for setting, of in known.items():
        ordered = sorted(of, key=lambda method: -np.mean(of[method]) if of[method] else math.inf)
        places = {method: place for place, method in enumerate(ordered, 1)}
        columns[setting] = {m: f"{places[m]}. {_cell(of[m])}" if m in of else "–" for m in methods}
    methods.sort(key=lambda method: places.get(method, len(methods)))  # of the last setting, tuned
    return pd.DataFrame([{"method": m, **{setting: of[m] for setting, of in columns.items()}} for m in methods])


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    bounds = student(np.array(values)) if len(values) > 1 else None
    about = f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds is not None else ""
    return f"{100 * np.mean(values):.1f}{about}"


def ranking_caption(history: pd.DataFrame, view: object, budget: str) -> str:
    """What the numbers of ``ranking`` are; ``budget`` is what every search had, in words, empty if that is not known."""
    counts = sorted(set(history.groupby("name")["seed"].nunique()))
    seeds = "1 seed" if counts == [1] else f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"
    return (
        f"{view}, percent on test samples, mean over {seeds} that nothing was tuned on, "
        "with its 95 % confidence interval; the number before it is the place under that setting"
        + (f"; every search had {budget}" if budget else "")
    )


def budgets(trials: pd.DataFrame, metric: str, direction: str) -> pd.DataFrame:
    """A row per search: what it has used, how its trials ended, its best value, when that was found, and the values."""
    rows = []
    for (entry, setting), of in trials.groupby(["entry", "setting"], sort=False):
        done = of.dropna(subset="value")
        best = None
        if len(done):
            best = done.loc[done["value"].idxmax() if direction == "maximize" else done["value"].idxmin()]
        rows.append(
            {
                "entry": f"{entry}, {setting}",
                "trials": len(of),
                "complete": len(done),
                "pruned": int((of["state"] == "pruned").sum()),
                "failed": int((of["state"] == "failed").sum()),
                "client updates": f"{int(of['updates'].sum()):,}",
                "seconds": f"{of['seconds'].sum():.0f}",
                metric: "–" if best is None else f"{best['value']:.4f}",
                "found in trial": "–" if best is None else str(int(best["trial"])),
                "best values": "–" if best is None else shown_values(json.loads(best["values"])),
            }
        )
    return pd.DataFrame(rows)


def shown_values(values: Mapping[str, object]) -> str:
    """Dotted keys and their values in a line."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def best_so_far(trials: pd.DataFrame, direction: str) -> pd.DataFrame:
    """A row per trial with ``best``, the best value of its search up to it, NaN as long as there is none."""
    parts = []
    for _, of in trials.groupby(["entry", "setting"], sort=False):
        of = of.sort_values("trial")
        running = of["value"].cummax() if direction == "maximize" else of["value"].cummin()
        parts.append(of.assign(best=running.ffill()))
    return pd.concat(parts, ignore_index=True)


def report_files(
    trials: pd.DataFrame,
    importances: Mapping[str, Mapping[str, float]],
    metric: str,
    direction: str,
    budget: str,
    ranked: tuple[pd.DataFrame, str] | None,
) -> dict[str, bytes]:
    """The report of a tuning as files by name: ``tuning.md``, tables, pictures.

    Args:
        importances: of the keys of each entry, as far as known.
        budget: in words, what every entry got.
        ranked: ``ranking`` of the final study and its caption, if it was run.
    """
    from raysim.plots.style import as_png  # not at the top: it imports matplotlib
    from raysim.plots.tuning import plot_best_so_far, plot_importances, plot_slices

    used = budgets(trials, metric, direction)
    lines = []
    files = {"trials.csv": trials.to_csv(index=False).encode(), "budgets.csv": used.to_csv(index=False).encode()}
    if ranked is not None:
        table, caption = ranked
        lines = ["Whether a lead survives equal tuning:", "", f"*{caption}*", "", formatted(table, "markdown"), ""]
        files["ranking.csv"] = table.to_csv(index=False).encode()
    same = f"Every entry got the same budget: {budget}. Values are of {metric}, of the last evaluated round, mean over seeds."
    lines += [same, "", formatted(used, "markdown"), ""]
    files["best_so_far.png"] = as_png(plot_best_so_far(best_so_far(trials, direction), metric))
    if any(importances.values()):
        files["importance.png"] = as_png(plot_importances(importances, metric))
        rows = [{"entry": e, "key": k, "importance": v} for e, of in importances.items() for k, v in of.items()]
        files["importance.csv"] = pd.DataFrame(rows).to_csv(index=False).encode()
    for i, (entry, of) in enumerate(trials[trials["setting"] == "tuned"].groupby("entry", sort=False)):
        files[f"slices-{i:02d}.png"] = as_png(plot_slices(of, str(entry), metric, direction))
    lines += [f"Pictures beside this: {', '.join(name for name in files if name.endswith('.png'))}."]
    files["tuning.md"] = "\n".join(lines).encode()
    return files
