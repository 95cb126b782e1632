"""The comparison of runs: a row per group, mean and standard deviation over its runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from raysim.analysis.divergence import rejected_share
from raysim.errors import ConfigError
from raysim.views import FAMILIES, MODELS, OF_CLIENTS, VALIDATION, ClientSet, Model, View

Last = int | Literal["best"]
"""How many of the last evaluated rounds are averaged, or ``best``: the best round of each run."""


def columns(model: Model) -> dict[str, str]:
    """The metrics of a comparison with their headings; those without another model's name are about ``model``.

    New clients are evaluated after the last round only: where others are shown, they have no column.
    """
    (other,) = (family for family in FAMILIES if family != model)
    return {
        f"{model}/accuracy_mean": "accuracy",
        f"{model}/accuracy_weighted": "weighted",
        f"{model}/accuracy_worst_decile": "worst decile",
        f"{model}/auc_mean": "AUC",
        f"{other}/accuracy_mean": MODELS[other],
        "global/accuracy": "global",
        "new_clients/accuracy_before_mean": "new clients",
        "new_clients/accuracy_after_mean": "adapted",
    }


def compare(history: pd.DataFrame, model: Model, by: str = "name", last: Last = 1) -> pd.DataFrame:
    """From a row per run and round to a row per group: the mean of its ``last`` evaluated rounds, or its best round.

    Columns: ``by``, ``seeds`` (``runs``, if not grouped by name), each metric of ``columns`` as ``62.1 ± 0.8`` percent
    (sample standard deviation over the group's seeds or runs), ``rejected``, the share of updates that were not finite (if
    there are any), metrics of a user's own by their names as ``0.123 ± 0.004``, ``MB/round``, what a federation would send up
    and down per round, and ``s/round``, the median.
    """
    rows, count, shown = [], "seeds" if by == "name" else "runs", columns(model)
    own = own_metrics(history, model)
    rejects = rejected_share(history) > 0
    if last != 1:
        shown = {metric: column for metric, column in shown.items() if not metric.startswith("new_clients/")}
    for group, runs in history.groupby(by, sort=False):
        final = samples(runs, model, by, last)
        row: dict[str, object] = {by: group, count: len(final)}
        for metric, column in shown.items():
            if metric in final and final[metric].notna().any():
                row[column] = str(Cell.of(final[metric]))
        if rejects:
            row["rejected"] = f"{100 * rejected_share(runs):.0f} %"
        row |= {column: Cell.of(final[metric]).as_is() for metric, column in own.items() if final[metric].notna().any()}
        sent = runs["communication/down_bytes"] + runs["communication/up_bytes"]
        row["MB/round"] = f"{sent.mean() / 1e6:.2f}"
        row["s/round"] = f"{runs['system/round_seconds'].median():.2f}"
        rows.append(row)
    table = pd.DataFrame(rows)
    named = (*shown.values(), "rejected", *own.values())
    fixed = [by, count, *(c for c in named if c in table), "MB/round", "s/round"]
    return table[fixed].fillna("–")


def own_metrics(history: pd.DataFrame, model: Model) -> dict[str, str]:
    """The metrics of ``model`` that are a user's own (``evaluate.metrics``), with their names as headings."""
    taken = {"name", "seeds", "runs", "rejected", "MB/round", "s/round", *columns(model).values()}
    names = [key.removeprefix(f"{model}/") for key in history.columns if key.startswith(f"{model}/")]
    own = [name for name in names if name not in OF_CLIENTS]
    return {f"{model}/{name}": f"{name} (own)" if name in taken else name for name in own}


def view_of(history: pd.DataFrame, model: Model, clients: ClientSet, last: Last = 1) -> View:
    """What the numbers of a comparison are about; the rounds are listed where all runs have the same.

    Raises:
        ConfigError: a run was never evaluated as ``model``; those of earlier versions have only the family that their
            ``evaluate.protocol`` asked for.
    """
    evaluated = evaluated_rounds(history, model)
    if without := sorted(set(history["run_id"]) - set(evaluated["run_id"])):
        raise ConfigError(
            f"run {without[0]} has no {model}/accuracy_mean ({MODELS[model]}): it was logged by an earlier version of "
            "raysim, which evaluated only one of as trained and after aggregation; run it again"
        )
    if last == "best":
        judged = {_judged_by(run, model).startswith(VALIDATION) for _, run in evaluated.groupby("run_id", sort=False)}
        chosen = {
            (True,): ", chosen on its validation samples",
            (False,): ", chosen on the test samples: optimistic",
            (False, True): ", chosen on validation samples where a run has them, else on the test samples: optimistic",
        }[tuple(sorted(judged))]
        return View(model, clients, f"best round of each run{chosen}")
    of_runs = {tuple(shown_rounds(run, model, last)) for _, run in evaluated.groupby("run_id", sort=False)}
    if len(of_runs) == 1:
        rounds = of_runs.pop()
        return View(model, clients, rounds)
    fewest = min(len(rounds) for rounds in of_runs)
    too_few = f" (some runs have only {fewest})" if fewest < last else ""
    ends = sorted({rounds[-1] + 1 for rounds in of_runs})
    up_to = f"round {ends[0]}" if len(ends) == 1 else f"rounds {ends[0]} to {ends[-1]}"
    what = "last round of each run" if last == 1 else f"mean of the last {last} evaluated rounds of each run{too_few}"
    return View(model, clients, f"{what}, which end with {up_to}")


def caption(experiment: str, history: pd.DataFrame, view: View, by: str = "name") -> str:
    """One line that says what the numbers of ``compare`` are."""
    spread = f", mean ± standard deviation over {'seeds' if by == 'name' else 'runs'}"
    several = (history.groupby(by)["seed" if by == "name" else "run_id"].nunique() > 1).any()
    but = f" but for {', '.join(own)}" if (own := own_metrics(history, view.model).values()) else ""
    return f"{experiment}: {view}, percent{but}{spread if several else ''}"


def evaluated_rounds(runs: pd.DataFrame, model: Model) -> pd.DataFrame:
    """The rows of rounds in which clients were evaluated, in the order of rounds."""
    metric = f"{model}/accuracy_mean"
    if metric not in runs:
        return runs.iloc[:0]
    return runs.dropna(subset=[metric]).sort_values("round")


def samples(runs: pd.DataFrame, model: Model, by: str, last: Last) -> pd.DataFrame:
    """The rows over which a group's mean and spread are: one per seed, or one per name and seed if not grouped by name.

    A seed that was run twice counts once, with the mean of its runs: the second run has nothing new to say.
    """
    final = last_rounds(runs, model, last).drop(columns="seed", errors="ignore")
    of_run = runs.drop_duplicates("run_id").set_index("run_id").loc[final.index]
    same = [of_run["seed"]] if by == "name" else [of_run["name"], of_run["seed"]]
    return final.groupby(same, sort=False).mean()


def shown_rounds(run: pd.DataFrame, model: Model, last: Last) -> list[int]:
    """The rounds of one run that are shown: its ``last`` evaluated ones, or the one with the best mean over clients.

    That is the best on the validation samples, if the run has them, and else on the test samples.
    """
    evaluated = evaluated_rounds(run, model)
    if last == "best":
        evaluated = evaluated.nlargest(1, _judged_by(evaluated, model))
        last = 1
    rounds: list[int] = evaluated["round"].astype(int).tail(last).tolist()
    return rounds


def _judged_by(evaluated: pd.DataFrame, model: Model) -> str:
    """The metric by which the best of one run's evaluated rounds is chosen."""
    metric = f"{VALIDATION}/{model}/accuracy_mean"
    return metric if metric in evaluated and evaluated[metric].notna().any() else f"{model}/accuracy_mean"


def last_rounds(runs: pd.DataFrame, model: Model, last: Last) -> pd.DataFrame:
    """Per run, the mean of every metric over its ``shown_rounds``: a row per ``run_id``."""
    of_runs = {
        run_id: run[run["round"].isin(shown_rounds(run, model, last))].mean(numeric_only=True)
        for run_id, run in runs.groupby("run_id", sort=False)
    }
    return pd.DataFrame(of_runs).T.rename_axis("run_id")


@dataclass(frozen=True)
class Cell:
    """A mean and, if there are several runs, a standard deviation: fractions, printed as percent."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, values: pd.Series) -> Cell:
        known = values.dropna()
        return cls(float(known.mean()), float(known.std()) if len(known) > 1 else None)

    @property
    def is_known(self) -> bool:
        """Whether any run has this metric."""
        return not math.isnan(self.mean)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f}" + (f" ± {100 * self.std:.1f}" if self.std is not None else "")

    def as_is(self) -> str:
        """The numbers themselves, not percent."""
        return f"{self.mean:.3g}" + (f" ± {self.std:.2g}" if self.std is not None else "")


def to_target(history: pd.DataFrame, model: Model, target: float, by: str = "name") -> pd.DataFrame:
    """Rounds and megabytes (up and down, all clients) until a run's mean accuracy first reaches ``target``, a fraction.

    A row per group: how many of its ``runs`` have ``reached`` it, and the means over those.
    """
    rows = []
    table = history.sort_values("round")
    sent = table["communication/down_bytes"] + table["communication/up_bytes"]
    table = table.assign(megabytes=sent.groupby(table["run_id"]).cumsum() / 1e6)
    for group, runs in table.groupby(by, sort=False):
        reached = runs[runs[f"{model}/accuracy_mean"] >= target].groupby("run_id").first()
        row = {by: group, "reached": len(reached), "runs": runs["run_id"].nunique()}
        rows.append(row | {"rounds": (reached["round"] + 1).mean(), "MB": reached["megabytes"].mean()})
    return pd.DataFrame(rows)
