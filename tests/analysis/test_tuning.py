import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raysim.analysis.paired_tests import student
from raysim.analysis.tuning import best_so_far, budgets, entry_name, of_name, ranking, report_files


def final(accuracies):
    """The history of a study of tuned values: one round of each seed."""
    rows = []
    for name, values in accuracies.items():
        for seed, value in enumerate(values):
            about = {"name": name, "seed": seed, "run_id": f"{name}{seed}", "round": 0}
            rows.append({**about, "personalized/accuracy_mean": value})
    return pd.DataFrame(rows)


def test_names_of_entries_and_back():
    assert of_name(entry_name("a · b", "lr only")) == ("a · b", ["lr only"])
    assert of_name(entry_name("fedavg", "tuned, lr only")) == ("fedavg", ["lr only", "tuned"])
    assert of_name("fedavg") is None
    assert of_name("fedavg · seed 0") is None


def test_the_interval_is_students():
    values = [0.5, 0.6, 0.64]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert student(np.array(values)) == pytest.approx((low, high))


def test_a_lead_under_each_setting():
    history = final(
        {
            "a · default": [0.5, 0.52],
            "a · tuned, lr only": [0.55, 0.55],
            "b · default": [0.4, 0.4],
            "b · lr only": [0.54, 0.54],
            "b · tuned": [0.7],
        }
    )
    table = ranking(history, "personalized")
    assert table.to_dict("records") == [
        {"method": "b", "default": "2. 40.0 [40.0, 40.0]", "lr only": "2. 54.0 [54.0, 54.0]", "tuned": "1. 70.0"},
        {
            "method": "a",
            "default": "1. 51.0 [38.3, 63.7]",
            "lr only": "1. 55.0 [55.0, 55.0]",
            "tuned": "2. 55.0 [55.0, 55.0]",
        },
    ]
    assert ranking(final({"a": [0.5], "b · tuned": [0.5]}), "personalized") is None  # no such study
    assert ranking(final({"a · tuned": [0.5], "b · tuned": [0.5]}), "personalized") is None  # nothing to compare with
    without = ranking(final({"a · default": [0.5], "a · tuned": [0.6], "b · default": [0.4]}), "personalized")
    assert without.set_index("method").loc["b", "tuned"] == "–"


TRIALS = pd.DataFrame(
    [
        {"entry": "a", "setting": "tuned", "trial": t, "state": state, "value": value, "updates": 10, "seconds": 2.0}
        | {
            "values": json.dumps({"train.optimizer.lr": 0.01 * t, "algorithm.kind": "xyz"[t % 3]}),
            "runs": "",
            "reason": "",
        }
        for t, state, value in [
            (1, "complete", 0.3),
            (2, "failed", np.nan),
            (3, "complete", 0.5),
            (4, "pruned", np.nan),
            (5, "complete", 0.4),
        ]
    ]
)


def test_what_was_used_and_found():
    (row,) = budgets(TRIALS, "validation/accuracy_mean", "maximize").to_dict("records")
    assert row == {
        "entry": "a, tuned",
        "trials": 5,
        "complete": 3,
        "pruned": 1,
        "failed": 1,
        "client updates": "50",
        "seconds": "10",
        "validation/accuracy_mean": "0.5000",
        "found in trial": "3",
        "best values": "train.optimizer.lr 0.03, algorithm.kind x",
    }
    (least,) = budgets(TRIALS, "train/loss", "minimize").to_dict("records")
    assert least["found in trial"] == "1"
    assert best_so_far(TRIALS, "maximize")["best"].tolist() == [0.3, 0.3, 0.5, 0.5, 0.5]
    assert best_so_far(TRIALS.iloc[1:], "minimize")["best"].tolist()[1:] == [0.5, 0.5, 0.4]


def test_the_report_has_all_of_it():
    ranked = ranking(final({"a · default": [0.5], "a · tuned": [0.6]}), "personalized"), "about"
    importances = {"a": {"train.optimizer.lr": 0.9, "algorithm.kind": 0.1}}
    files = report_files(TRIALS, importances, "validation/accuracy_mean", "maximize", "5 trials", ranked)
    pictures = {"best_so_far.png", "importance.png", "slices-00.png"}
    assert files.keys() == pictures | {"tuning.md", "trials.csv", "budgets.csv", "ranking.csv", "importance.csv"}
    assert all(files[name].startswith(b"\x89PNG") for name in pictures)
    text = files["tuning.md"].decode()
    assert "Every entry got the same budget: 5 trials." in text
    assert "| a | 1. 50.0 | 1. 60.0 |" in text
    nothing = TRIALS.assign(value=np.nan, state="failed")
    bare = report_files(nothing, {"a": {}}, "validation/accuracy_mean", "maximize", "5 trials", None)
    assert bare.keys() == {"best_so_far.png", "slices-00.png", "tuning.md", "trials.csv", "budgets.csv"}
