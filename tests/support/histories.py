"""Histories of runs as ``Result.history``."""

import pandas as pd


def small_history():
    """Method a with two seeds, b with one: three rounds in which accuracy grows to 0.5, 0.7 and 0.25."""
    rows = []
    for name, accuracies in {"a": [0.5, 0.7], "b": [0.25]}.items():
        for seed, accuracy in enumerate(accuracies):
            for round_ in range(3):
                row = {"name": name, "seed": seed, "round": round_, "run_id": f"{name}{seed}"}
                row["personalized/accuracy_mean"] = accuracy * (round_ + 1) / 3
                row["aggregated/accuracy_mean"] = accuracy * (round_ + 1) / 6
                row |= {"communication/down_bytes": 1e6, "communication/up_bytes": 5e5, "system/round_seconds": 2.0}
                rows.append(row | ({"global/accuracy": 0.1} if name == "b" else {}))
    return pd.DataFrame(rows)
