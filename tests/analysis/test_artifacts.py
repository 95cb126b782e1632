"""Pictures and tables at a study's end: who is paired with whom."""

import io

import numpy as np
import pandas as pd
import pytest

from raysim.analysis.artifacts import MOST_ROUNDS, baselines, by_method, drawn_rounds, gain_rows, study_files
from raysim.views import ClientSet, View

VIEW = View("personalized", ClientSet("all", 4), (2,))
ALGORITHMS = {"perfix": "fedperfix", "avg": "fedavg", "alone": "local"}


def clients(accuracy):
    """The table of clients of one run; None for a client that was dropped."""
    rows = [(i, value, 10, 1.0) for i, value in enumerate(accuracy) if value is not None]
    return pd.DataFrame(rows, columns=["client", "accuracy", "train_samples", "label_entropy"])


@pytest.fixture
def tables():
    return {
        ("perfix", 0): clients([0.5, None, 0.75, 1.0]),
        ("avg", 0): clients([0.25, 0.5, 0.75, 0.75]),
        ("alone", 0): clients([0.5, 0.5, 0.5]),  # of fewer clients: other data
    }


@pytest.fixture
def history():
    rows = [(name, 0, f"id-{name}", round, 0.5) for name in ALGORITHMS for round in (1, 2)]
    columns = ["name", "seed", "run_id", "round", "personalized/accuracy_mean"]
    sent = {"communication/down_bytes": 8, "communication/up_bytes": 8, "system/round_seconds": 1.0}
    return pd.DataFrame(rows, columns=columns).assign(**sent)


def test_only_clients_of_the_same_data_are_paired(history, tables):
    files = study_files(history, tables, ALGORITHMS, {"perfix": "a", "avg": "a", "alone": "b"}, "title", VIEW, VIEW)
    gained = pd.read_csv(io.BytesIO(files["gains_over_avg.csv"])).set_index("name")
    assert list(gained.index) == ["perfix"]
    assert gained.loc["perfix", "about"] == "as trained, all 4 clients, round 3"
    # Clients 0, 2 and 3 are in both: 25, 0 and 25 points.
    assert gained.loc["perfix", "gain"] == pytest.approx(50 / 3)
    assert not [name for name in files if "over_alone" in name]
    none = study_files(history, tables, ALGORITHMS, {"perfix": "a", "avg": "b", "alone": "c"}, "title", VIEW, VIEW)
    assert set(none) == {"comparison.png", "comparison.csv", "clients.png", "fairness.csv"}


def test_a_baseline_that_failed_is_left_out(history, tables):
    del tables["avg", 0]
    rest, data = history[history["name"] != "avg"], dict.fromkeys(ALGORITHMS, "a")
    files = study_files(rest, tables, ALGORITHMS, data, "title", VIEW, VIEW)
    assert not [name for name in files if "over_avg" in name]


def test_a_dropped_client_leaves_a_gap(tables):
    accuracy = by_method(tables)
    np.testing.assert_array_equal(accuracy["perfix"][0], [0.5, np.nan, 0.75, 1.0])
    np.testing.assert_array_equal(accuracy["alone"][0], [0.5, 0.5, 0.5, np.nan])
    rows = gain_rows(tables, "avg")["perfix"]
    assert list(rows["client"]) == [0, 2, 3]
    assert list(rows["gain"]) == [25, 0, 25]


def test_the_first_entry_of_an_algorithm_is_the_baseline_on_each_data():
    algorithms = {"a": "fedavg", "b": "fedavg", "c": "local", "d": "fedperfix"}
    assert baselines(algorithms, dict.fromkeys(algorithms, "x")) == ["c", "a"]
    assert baselines(algorithms, {"a": "x", "b": "y", "c": "y", "d": "y"}) == ["c", "a", "b"]


def test_of_many_rounds_a_picture_draws_some_and_the_last():
    assert drawn_rounds([1, 3, 4]) == [1, 3, 4]
    chosen = drawn_rounds(list(range(1000)))
    assert (len(chosen), chosen[0], chosen[-1]) == (MOST_ROUNDS, 0, 999)
