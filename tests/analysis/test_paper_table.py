import pandas as pd

from raysim.analysis.paper_table import paper_table
from raysim.views import ClientSet, View

from histories import small_history


def two_data_sets():
    first = small_history().assign(**{"personalized/auc_mean": 0.5})
    second = first[first["name"] == "b"].assign(**{"personalized/accuracy_mean": 0.3})
    return {"one": first, "two_": second}


VIEWS = dict.fromkeys(("one", "two_"), View("personalized", ClientSet("all", 4), (2,)))


def test_the_papers_table_marks_best_and_second_best():
    assert paper_table(two_data_sets(), VIEWS, "name", 1, "markdown").split("\n") == [
        "*one, two_: as trained, all 4 clients, round 3, percent*",
        "",
        "| name | one: seeds | one: accuracy | one: AUC | one: after aggregation "
        "| two_: seeds | two_: accuracy | two_: AUC | two_: after aggregation |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| a | 2 | **60.0 ± 14.1** | **50.0 ± 0.0** | **30.0 ± 7.1** | – | – | – | – |",
        "| b | 1 | 25.0 | 50.0 | 12.5 | 1 | **30.0** | **50.0** | **12.5** |",  # one seed of two: not marked
    ]
    latex = paper_table(two_data_sets(), VIEWS, "name", 1, "latex")
    assert "  b & 1 & 25.0 & 50.0 & 12.5 & 1 & \\textbf{30.0} & \\textbf{50.0} & \\textbf{12.5} \\\\" in latex
    assert "two\\_: accuracy" in latex
    assert "\\textbf{60.0 $\\pm$ 14.1}" in latex
    csv = paper_table({"one": two_data_sets()["one"]}, {"one": VIEWS["one"]}, "name", 1, "csv").split("\n")
    assert csv == [
        "name,seeds,accuracy mean,accuracy std,AUC mean,AUC std,after aggregation mean,after aggregation std,about",
        'a,2,60.000,14.142,50.000,0.000,30.000,7.071,"as trained, all 4 clients, round 3"',
        'b,1,25.000,,50.000,,12.500,,"as trained, all 4 clients, round 3"',
    ]


def test_best_and_second_best_among_groups_with_all_seeds():
    table = small_history()
    table = pd.concat([table, table[table["name"] == "a"].assign(name="c", run_id=lambda rows: "c" + rows["run_id"])])
    table.loc[table["name"] == "c", "personalized/accuracy_mean"] /= 2
    table["personalized/auc_mean"] = 0.5
    marked = paper_table({"one": table}, {"one": VIEWS["one"]}, "name", 1, "markdown")
    assert "| a | 2 | **60.0 ± 14.1** |" in marked
    assert "| c | 2 | <u>30.0 ± 7.1</u> |" in marked
    assert "| b | 1 | 25.0 |" in marked
