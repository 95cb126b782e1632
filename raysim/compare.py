"""The comparison of a study's runs: one row per entry, mean and standard deviation over its seeds."""

from __future__ import annotations

import pandas as pd

COLUMNS = {
    "personalized/accuracy_mean": "accuracy",
    "personalized/accuracy_weighted": "weighted",
    "personalized/accuracy_worst_decile": "worst decile",
    "personalized/auc_micro": "AUC",
    "global/accuracy": "global",
}


def compare(history: pd.DataFrame) -> pd.DataFrame:
    """From a row per run and round to a row per name, at the last round.

    Columns: ``name``, ``seeds``, then each metric as ``62.1 ± 0.8`` percent (sample standard deviation over seeds), and
    ``MB/round``, what a federation would send up and down per round.
    """
    rows = []
    for name, runs in history.groupby("name", sort=False):
        last = runs[runs["round"] == runs["round"].max()]
        row: dict[str, object] = {"name": name, "seeds": len(last)}
        for metric, column in COLUMNS.items():
            if metric in last and last[metric].notna().any():
                row[column] = percent(last[metric])
        sent = runs["communication/down_bytes"] + runs["communication/up_bytes"]
        row["MB/round"] = f"{sent.mean() / 1e6:.2f}"
        row["s/round"] = f"{runs['system/round_seconds'].median():.2f}"
        rows.append(row)
    table = pd.DataFrame(rows)
    fixed = ["name", "seeds", *(c for c in COLUMNS.values() if c in table), "MB/round", "s/round"]
    return table[fixed].fillna("–")


def percent(values: pd.Series) -> str:
    """``62.1 ± 0.8`` for fractions over several seeds, ``62.1`` for one."""
    spread = f" ± {100 * values.std():.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{spread}"
