import pandas as pd
import pytest

from raysim.analysis.comparison import Cell, caption, compare, to_target, view_of
from raysim.errors import ConfigError
from raysim.views import ClientSet, View

from histories import small_history


def test_rounds_and_megabytes_to_a_target():
    rows = [
        *(("a", "r0", i, accuracy) for i, accuracy in enumerate([0.1, None, 0.5, 0.4])),
        *(("a", "r1", i, accuracy) for i, accuracy in enumerate([0.6, 0.7, 0.7, 0.7])),
        *(("b", "r2", i, accuracy) for i, accuracy in enumerate([0.1, 0.2, 0.3, 0.4])),
    ]
    table = pd.DataFrame(rows, columns=["name", "run_id", "round", "personalized/accuracy_mean"])
    table = table.assign(**{"communication/down_bytes": 1e6, "communication/up_bytes": 2e6})
    found = to_target(table.sample(frac=1, random_state=0).sort_values("name"), "personalized", 0.5).set_index("name")
    assert found.loc["a"].tolist() == [2, 2, (3 + 1) / 2, (9 + 3) / 2]
    assert found.loc["b", ["reached", "runs"]].tolist() == [0, 1]
    assert found.loc["b", ["rounds", "MB"]].isna().all()


P = "personalized"


def test_the_table_by_hand():
    table = compare(small_history(), P).set_index("name")
    assert table.loc["a"].tolist() == [2, "60.0 ± 14.1", "30.0 ± 7.1", "–", "1.50", "2.00"]
    assert table.loc["b"].tolist() == [1, "25.0", "12.5", "10.0", "1.50", "2.00"]
    assert list(table.columns) == ["seeds", "accuracy", "after aggregation", "global", "MB/round", "s/round"]
    other = compare(small_history(), "aggregated").set_index("name")
    assert other.loc["b", ["accuracy", "as trained"]].tolist() == ["12.5", "25.0"]


def test_the_mean_of_the_last_rounds_and_other_groups():
    table = compare(small_history(), P, last=3).set_index("name")
    assert table.loc["a", "accuracy"] == "40.0 ± 9.4"  # two thirds of it, over three rounds
    grouped = compare(small_history().assign(method="x"), P, by="method")
    assert grouped[["method", "runs", "accuracy"]].values.tolist() == [["x", 3, "48.3 ± 22.5"]]


def test_the_caption_speaks_of_a_spread_only_where_there_is_one():
    history, everyone = small_history(), ClientSet("all", 4)
    text = caption("study", history, view_of(history, P, everyone))
    assert text == "study: as trained, all 4 clients, round 3, percent, mean ± standard deviation over seeds"
    one = history[history["run_id"] == "a0"]
    assert caption("study", one, view_of(one, "aggregated", everyone)) == (
        "study: after aggregation, all 4 clients, round 3, percent"
    )


def test_cells():
    assert str(Cell.of(pd.Series([0.5]))) == "50.0"
    assert str(Cell.of(pd.Series([0.5, 0.6]))) == "55.0 ± 7.1"
    assert str(Cell.of(pd.Series([0.5, float("nan")]))) == "50.0"  # only one of the runs has it


def test_new_clients_have_a_column_only_where_the_last_round_is_shown():
    history = small_history()
    history.loc[history["round"] == 2, "new_clients/accuracy_after_mean"] = 0.3
    assert "adapted" in compare(history, P)
    assert "adapted" not in compare(history, P, last=2)
    assert "adapted" not in compare(history, P, last="best")


def test_a_seed_that_was_run_twice_counts_once():
    history = small_history()
    again = history[history["run_id"] == "a0"].assign(run_id="again")
    once, twice = compare(history, P), compare(pd.concat([history, again]), P)
    assert twice.equals(once)
    assert compare(pd.concat([history, again]).assign(kind="x"), P, "kind")["runs"].tolist() == [3]


def test_the_rounds_of_a_view_are_those_that_all_runs_have_or_are_told_to_differ():
    history, everyone = small_history(), ClientSet("all", 4)
    assert view_of(history, P, everyone, 2).rounds == (1, 2)
    shorter = history[(history["name"] == "a") | (history["round"] < 2)]
    assert str(view_of(shorter, P, everyone)) == (
        "as trained, all 4 clients, last round of each run, which end with rounds 2 to 3"
    )
    assert "mean of the last 3 evaluated rounds of each run (some runs have only 2)" in str(
        view_of(shorter, P, everyone, 3)
    )
    assert "optimistic" in str(view_of(history, P, everyone, "best"))


def test_the_best_round_is_chosen_on_validation_samples_where_there_are_some():
    history = small_history()
    assert compare(history, "personalized", last="best")["accuracy"].tolist() == ["60.0 ± 14.1", "25.0"]
    validated = history.assign(**{"validation/personalized/accuracy_mean": [0.1, 0.3, 0.2] * 3})
    assert compare(validated, "personalized", last="best")["accuracy"].tolist() == [
        "40.0 ± 9.4",
        "16.7",
    ]  # round 1 of 3
    validated.loc[validated["name"] == "b", "validation/personalized/accuracy_mean"] = float("nan")
    assert compare(validated, "personalized", last="best")["accuracy"].tolist() == ["40.0 ± 9.4", "25.0"]
    everyone = ClientSet("all")
    views = [str(view_of(h, "personalized", everyone, "best")) for h in (history, validated, validated[:6])]
    assert [view.rpartition(", ")[2] for view in views] == [
        "chosen on the test samples: optimistic",
        "else on the test samples: optimistic",
        "chosen on its validation samples",
    ]


def test_a_run_without_the_asked_family_is_refused():
    history = small_history()
    history.loc[history["run_id"] == "b0", "aggregated/accuracy_mean"] = float("nan")
    with pytest.raises(ConfigError, match=r"run b0 has no aggregated/accuracy_mean \(after aggregation\)"):
        view_of(history, "aggregated", ClientSet("all", 4))
    with pytest.raises(ConfigError, match="earlier version"):
        view_of(history.drop(columns="aggregated/accuracy_mean"), "aggregated", ClientSet("all", 4))


def test_metrics_of_ones_own_are_columns_as_they_are():
    rows = [(name, seed, 0.5, 0.0123 * (seed + 1)) for name in ("a", "b") for seed in (0, 1)]
    history = pd.DataFrame(rows, columns=["name", "seed", "personalized/accuracy_mean", "personalized/ece"])
    history = history.assign(run_id=[str(i) for i in range(4)], round=0, **{"system/round_seconds": 1.0})
    history = history.assign(**{"communication/down_bytes": 0.0, "communication/up_bytes": 0.0})
    history = history.assign(**{"personalized/accuracy": 0.25, "personalized/accuracy_std": 0.1, "aggregated/ece": 1.0})
    table = compare(history, "personalized")
    assert table["ece"].tolist() == 2 * ["0.0185 ± 0.0087"]
    assert table["accuracy (own)"].tolist() == 2 * ["0.25 ± 0"]
    assert table["accuracy"].tolist() == 2 * ["50.0 ± 0.0"]
    view = View("personalized", ClientSet.asked("all", [3]), (0,))
    assert "percent but for ece, accuracy (own), mean ±" in caption("mine", history, view)
