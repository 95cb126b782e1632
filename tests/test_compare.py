import pandas as pd

from raysim.analysis.comparison import Cell, caption, compare, paper_table


def history():
    rows = []
    for name, accuracies in {"a": [0.5, 0.7], "b": [0.25]}.items():
        for seed, accuracy in enumerate(accuracies):
            for round_ in range(3):
                row = {"name": name, "seed": seed, "round": round_, "run_id": f"{name}{seed}"}
                row["personalized/accuracy_mean"] = accuracy * (round_ + 1) / 3
                row |= {"communication/down_bytes": 1e6, "communication/up_bytes": 5e5, "system/round_seconds": 2.0}
                rows.append(row | ({"global/accuracy": 0.1} if name == "b" else {}))
    return pd.DataFrame(rows)


def test_the_table_by_hand():
    table = compare(history()).set_index("name")
    assert table.loc["a"].tolist() == [2, "60.0 ± 14.1", "–", "1.50", "2.00"]
    assert table.loc["b"].tolist() == [1, "25.0", "10.0", "1.50", "2.00"]
    assert list(table.columns) == ["seeds", "accuracy", "global", "MB/round", "s/round"]


def test_the_mean_of_the_last_rounds_and_other_groups():
    table = compare(history(), last=3).set_index("name")
    assert table.loc["a", "accuracy"] == "40.0 ± 9.4"  # two thirds of it, over three rounds
    grouped = compare(history().assign(method="x"), by="method")
    assert grouped[["method", "runs", "accuracy"]].values.tolist() == [["x", 3, "48.3 ± 22.5"]]


def test_the_caption_speaks_of_a_spread_only_where_there_is_one():
    assert caption("study", history()) == "study: last round, percent, mean ± standard deviation over seeds"
    assert caption("study", history()[history()["run_id"] == "a0"]) == "study: last round, percent"


def test_cells():
    assert str(Cell.of(pd.Series([0.5]))) == "50.0"
    assert str(Cell.of(pd.Series([0.5, 0.6]))) == "55.0 ± 7.1"
    assert str(Cell.of(pd.Series([0.5, float("nan")]))) == "50.0"  # only one of the runs has it


def two_data_sets():
    first = history().assign(**{"personalized/auc_micro": 0.5})
    second = first[first["name"] == "b"].assign(**{"personalized/accuracy_mean": 0.3})
    return {"one": first, "two_": second}


def test_the_papers_table_marks_best_and_second_best():
    assert paper_table(two_data_sets(), "name", 1, "markdown").split("\n") == [
        "*one, two_: last round, percent*",
        "",
        "| name | one: seeds | one: accuracy | one: AUC | two_: seeds | two_: accuracy | two_: AUC |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| a | 2 | **60.0 ± 14.1** | **50.0 ± 0.0** | – | – | – |",
        "| b | 1 | <u>25.0</u> | **50.0** | 1 | **30.0** | **50.0** |",
    ]
    latex = paper_table(two_data_sets(), "name", 1, "latex")
    assert "  b & 1 & \\underline{25.0} & \\textbf{50.0} & 1 & \\textbf{30.0} & \\textbf{50.0} \\\\" in latex
    assert "two\\_: accuracy" in latex
    assert "\\textbf{60.0 $\\pm$ 14.1}" in latex
    csv = paper_table({"one": two_data_sets()["one"]}, "name", 1, "csv").split("\n")
    assert csv == [
        "name,seeds,accuracy mean,accuracy std,AUC mean,AUC std,of",
        "a,2,60.000,14.142,50.000,0.000,last round",
        "b,1,25.000,,50.000,,last round",
    ]
