"""The comparison of runs: a row per group, mean and standard deviation over its runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

COLUMNS = {
    "personalized/accuracy_mean": "accuracy",
    "personalized/accuracy_weighted": "weighted",
    "personalized/accuracy_worst_decile": "worst decile",
    "personalized/auc_micro": "AUC",
    "global/accuracy": "global",
    "new_clients/accuracy_before_mean": "new clients",
    "new_clients/accuracy_after_mean": "adapted",
}

Last = int | Literal["best"]
"""How many of the last evaluated rounds are averaged, or ``best``: the best round of each run."""


def compare(history: pd.DataFrame, by: str = "name", last: Last = 1) -> pd.DataFrame:
    """From a row per run and round to a row per group: the mean of its ``last`` evaluated rounds, or its best round.

    Columns: ``by``, ``seeds`` (``runs``, if not grouped by name), each metric as ``62.1 ± 0.8`` percent (sample standard
    deviation over the group's seeds or runs), ``MB/round``, what a federation would send up and down per round, and
    ``s/round``, the median.
    """
    rows, count = [], "seeds" if by == "name" else "runs"
    for group, runs in history.groupby(by, sort=False):
        final = samples(runs, by, last)
        row: dict[str, object] = {by: group, count: len(final)}
        for metric, column in COLUMNS.items():
            if metric in final and final[metric].notna().any():
                row[column] = str(Cell.of(final[metric]))
        sent = runs["communication/down_bytes"] + runs["communication/up_bytes"]
        row["MB/round"] = f"{sent.mean() / 1e6:.2f}"
        row["s/round"] = f"{runs['system/round_seconds'].median():.2f}"
        rows.append(row)
    table = pd.DataFrame(rows)
    fixed = [by, count, *(c for c in COLUMNS.values() if c in table), "MB/round", "s/round"]
    return table[fixed].fillna("–")


def rounds_shown(last: Last, history: pd.DataFrame) -> str:
    """Which rounds the numbers come from."""
    if last == "best":
        return "best round of each run, chosen on the test samples: optimistic"
    if last == 1:
        return "last round"
    fewest = history.dropna(subset=["personalized/accuracy_mean"]).groupby("run_id").size().min()
    too_few = f" (some runs have only {fewest})" if fewest < last else ""
    return f"mean of the last {last} evaluated rounds{too_few}"


def caption(experiment: str, history: pd.DataFrame, by: str = "name", last: Last = 1) -> str:
    """One line that says what the numbers of ``compare`` are."""
    spread = f", mean ± standard deviation over {'seeds' if by == 'name' else 'runs'}"
    several = (history.groupby(by)["seed" if by == "name" else "run_id"].nunique() > 1).any()
    return f"{experiment}: {rounds_shown(last, history)}, percent{spread if several else ''}"


def samples(runs: pd.DataFrame, by: str, last: Last) -> pd.DataFrame:
    """The rows over which a group's mean and spread are: one per seed, or one per run if not grouped by name.

    A seed that was run twice counts once, with the mean of its runs: the second run has nothing new to say.
    """
    final = last_rounds(runs, last)
    return final.groupby("seed", sort=False).mean() if by == "name" else final


def last_rounds(runs: pd.DataFrame, last: Last) -> pd.DataFrame:
    """Per run, the mean of every metric over its ``last`` evaluated rounds: a row per ``run_id``."""
    evaluated = runs.dropna(subset=["personalized/accuracy_mean"]).sort_values("round")
    if last == "best":
        best = evaluated.groupby("run_id", sort=False)["personalized/accuracy_mean"].idxmax()
        return evaluated.loc[best].set_index("run_id").select_dtypes("number")
    return evaluated.groupby("run_id", sort=False).tail(last).groupby("run_id", sort=False).mean(numeric_only=True)


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


def to_target(history: pd.DataFrame, target: float, by: str = "name") -> pd.DataFrame:
    """Rounds and megabytes (up and down, all clients) until a run's mean accuracy first reaches ``target``, a fraction.

    A row per group: how many of its ``runs`` have ``reached`` it, and the means over those.
    """
    rows = []
    table = history.sort_values("round")
    sent = table["communication/down_bytes"] + table["communication/up_bytes"]
    table = table.assign(megabytes=sent.groupby(table["run_id"]).cumsum() / 1e6)
    for group, runs in table.groupby(by, sort=False):
        reached = runs[runs["personalized/accuracy_mean"] >= target].groupby("run_id").first()
        row = {by: group, "reached": len(reached), "runs": runs["run_id"].nunique()}
        rows.append(row | {"rounds": (reached["round"] + 1).mean(), "MB": reached["megabytes"].mean()})
    return pd.DataFrame(rows)
