import pandas as pd

from raysim.analysis.comparison import Cell, caption, compare, rounds_shown, to_target

from histories import small_history


def test_rounds_and_megabytes_to_a_target():
    rows = [
        *(("a", "r0", i, accuracy) for i, accuracy in enumerate([0.1, None, 0.5, 0.4])),
        *(("a", "r1", i, accuracy) for i, accuracy in enumerate([0.6, 0.7, 0.7, 0.7])),
        *(("b", "r2", i, accuracy) for i, accuracy in enumerate([0.1, 0.2, 0.3, 0.4])),
    ]
    table = pd.DataFrame(rows, columns=["name", "run_id", "round", "personalized/accuracy_mean"])
    table = table.assign(**{"communication/down_bytes": 1e6, "communication/up_bytes": 2e6})
    found = to_target(table.sample(frac=1, random_state=0).sort_values("name"), 0.5).set_index("name")
    assert found.loc["a"].tolist() == [2, 2, (3 + 1) / 2, (9 + 3) / 2]
    assert found.loc["b", ["reached", "runs"]].tolist() == [0, 1]
    assert found.loc["b", ["rounds", "MB"]].isna().all()


def test_the_table_by_hand():
    table = compare(small_history()).set_index("name")
    assert table.loc["a"].tolist() == [2, "60.0 ± 14.1", "–", "1.50", "2.00"]
    assert table.loc["b"].tolist() == [1, "25.0", "10.0", "1.50", "2.00"]
    assert list(table.columns) == ["seeds", "accuracy", "global", "MB/round", "s/round"]


def test_the_mean_of_the_last_rounds_and_other_groups():
    table = compare(small_history(), last=3).set_index("name")
    assert table.loc["a", "accuracy"] == "40.0 ± 9.4"  # two thirds of it, over three rounds
    grouped = compare(small_history().assign(method="x"), by="method")
    assert grouped[["method", "runs", "accuracy"]].values.tolist() == [["x", 3, "48.3 ± 22.5"]]


def test_the_caption_speaks_of_a_spread_only_where_there_is_one():
    assert caption("study", small_history()) == "study: last round, percent, mean ± standard deviation over seeds"
    assert caption("study", small_history()[small_history()["run_id"] == "a0"]) == "study: last round, percent"


def test_cells():
    assert str(Cell.of(pd.Series([0.5]))) == "50.0"
    assert str(Cell.of(pd.Series([0.5, 0.6]))) == "55.0 ± 7.1"
    assert str(Cell.of(pd.Series([0.5, float("nan")]))) == "50.0"  # only one of the runs has it


def test_a_seed_that_was_run_twice_counts_once():
    history = small_history()
    again = history[history["run_id"] == "a0"].assign(run_id="again")
    once, twice = compare(history), compare(pd.concat([history, again]))
    assert twice.equals(once)
    assert compare(pd.concat([history, again]).assign(kind="x"), "kind")["runs"].tolist() == [4]


def test_a_mean_over_more_rounds_than_there_are_says_so():
    history = small_history()
    assert rounds_shown(3, history) == "mean of the last 3 evaluated rounds"
    assert rounds_shown(5, history) == "mean of the last 5 evaluated rounds (some runs have only 3)"
    assert "only 3" in caption("e", history, last=5)
