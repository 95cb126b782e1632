import pandas as pd

from raysim.analysis.paper_table import paper_table

from histories import small_history


def two_data_sets():
    first = small_history().assign(**{"personalized/auc_micro": 0.5})
    second = first[first["name"] == "b"].assign(**{"personalized/accuracy_mean": 0.3})
    return {"one": first, "two_": second}


def test_the_papers_table_marks_best_and_second_best():
    assert paper_table(two_data_sets(), "name", 1, "markdown").split("\n") == [
        "*one, two_: last round, percent*",
        "",
        "| name | one: seeds | one: accuracy | one: AUC | two_: seeds | two_: accuracy | two_: AUC |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| a | 2 | **60.0 ± 14.1** | **50.0 ± 0.0** | – | – | – |",
        "| b | 1 | 25.0 | 50.0 | 1 | **30.0** | **50.0** |",  # one seed of two: not marked
    ]
    latex = paper_table(two_data_sets(), "name", 1, "latex")
    assert "  b & 1 & 25.0 & 50.0 & 1 & \\textbf{30.0} & \\textbf{50.0} \\\\" in latex
    assert "two\\_: accuracy" in latex
    assert "\\textbf{60.0 $\\pm$ 14.1}" in latex
    csv = paper_table({"one": two_data_sets()["one"]}, "name", 1, "csv").split("\n")
    assert csv == [
        "name,seeds,accuracy mean,accuracy std,AUC mean,AUC std,rounds",
        "a,2,60.000,14.142,50.000,0.000,last round",
        "b,1,25.000,,50.000,,last round",
    ]


def test_best_and_second_best_among_groups_with_all_seeds():
    table = small_history()
    table = pd.concat([table, table[table["name"] == "a"].assign(name="c", run_id=lambda rows: "c" + rows["run_id"])])
    table.loc[table["name"] == "c", "personalized/accuracy_mean"] /= 2
    table["personalized/auc_micro"] = 0.5
    marked = paper_table({"one": table}, "name", 1, "markdown")
    assert "| a | 2 | **60.0 ± 14.1** |" in marked
    assert "| c | 2 | <u>30.0 ± 7.1</u> |" in marked
    assert "| b | 1 | 25.0 |" in marked
