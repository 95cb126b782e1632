"""Runs whose clients' updates were rejected, since training diverged: their numbers are about a model that did not learn."""

from __future__ import annotations

import pandas as pd


def rejected_share(history: pd.DataFrame) -> float:
    """The share of the clients that trained, over all rounds, whose update was not finite or out of range."""
    size, dropped, rejected = (
        float(history[f"cohort/{what}"].sum()) if f"cohort/{what}" in history else 0.0  # of earlier versions
        for what in ("size", "dropped", "rejected")
    )
    return rejected / (size - dropped) if size > dropped else 0.0


def rejections(history: pd.DataFrame) -> list[str]:
    """A line for each run that lost more than half of its updates so."""
    lines = []
    for _, run in history.groupby("run_id", sort=False):
        share, who = rejected_share(run), f"{run['name'].iloc[0]}, seed {run['seed'].iloc[0]}"
        if share == 1:
            lines.append(
                f"{who}: every update of every round was rejected, not finite or out of range: its numbers are about the "
                "initial model. Is train.optimizer.lr too high?"
            )
        elif share > 0.5:
            lines.append(
                f"{who}: {100 * share:.0f} % of its clients' updates were rejected, not finite or out of range"
            )
    return lines
