import numpy as np
import pandas as pd

from raysim.compare import Cell, compare, paper_table
from raysim.plots import plot_comparison, plot_gains, plot_partition
from raysim.statistics import gains


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


def test_cells():
    assert str(Cell.of(pd.Series([0.5]))) == "50.0"
    assert str(Cell.of(pd.Series([0.5, 0.6]))) == "55.0 ± 7.1"


def two_data_sets():
    first = history().assign(**{"personalized/auc_micro": 0.5})
    second = first[first["name"] == "b"].assign(**{"personalized/accuracy_mean": 0.3})
    return {"one": first, "two_": second}


def test_the_papers_table_marks_best_and_second_best():
    assert paper_table(two_data_sets(), "name", 1, "markdown").split("\n") == [
        "| name | one: accuracy | one: AUC | two_: accuracy | two_: AUC |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | **60.0 ± 14.1** | **50.0 ± 0.0** | – | – |",
        "| b | <u>25.0</u> | **50.0** | **30.0** | **50.0** |",
    ]
    latex = paper_table(two_data_sets(), "name", 1, "latex")
    assert "  b & \\underline{25.0} & \\textbf{50.0} & \\textbf{30.0} & \\textbf{50.0} \\\\" in latex
    assert "two\\_: accuracy" in latex
    assert "\\textbf{60.0 $\\pm$ 14.1}" in latex
    csv = paper_table({"one": two_data_sets()["one"]}, "name", 1, "csv").split("\n")
    assert csv == [
        "name,accuracy mean,accuracy std,AUC mean,AUC std",
        "a,60.000,14.142,50.000,0.000",
        "b,25.000,,50.000,",
    ]


def test_the_comparison_has_a_line_per_name_over_rounds_and_over_megabytes():
    table = history()
    table.loc[table["name"] == "b", ["communication/down_bytes", "communication/up_bytes"]] = 0.0
    figure = plot_comparison(table, "title")
    over_rounds, over_bytes = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a (2 seeds)", "b"]
    assert len(over_rounds.collections) == 1
    np.testing.assert_allclose(over_rounds.lines[0].get_ydata(), [0.2, 0.4, 0.6])
    np.testing.assert_allclose(over_rounds.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(over_bytes.lines[0].get_xdata(), [1.5, 3.0, 4.5])
    np.testing.assert_allclose(over_bytes.lines[1].get_ydata(), [0.25, 0.25])  # sends nothing: a level
    assert figure.get_suptitle() == "title"


def test_the_picture_of_gains_is_sorted_by_gain_per_kilobyte():
    accuracy = {n: {0: np.array([0.1, 0.2]) + g} for n, g in (("base", 0), ("x", 0.1), ("y", 0.2))}
    table = gains(accuracy, "base", {"base": 0, "x": 1000, "y": 4000})
    figure = plot_gains(table, "base", "title", {"qkv": 0.5, "mlp": 0.2})
    points, bars, kinds = figure.axes
    assert [t.get_text() for t in points.get_yticklabels()] == ["y (4.0 kB)", "x (1.0 kB)"]
    np.testing.assert_allclose([bar.get_width() for bar in bars.patches], [5.0, 10.0])
    assert [t.get_text() for t in kinds.get_yticklabels()] == ["mlp", "qkv"]


def test_the_partition_is_bars_for_few_clients_and_a_heat_map_for_many():
    few = plot_partition(np.array([[3, 1], [0, 2]]), ("x", "y"), "few").axes[0]
    extents = [[(p.vertices[:, 1].min(), p.vertices[:, 1].max()) for p in c.get_paths()] for c in few.collections]
    assert extents == [[(0, 3), (0, 0)], [(3, 4), (0, 2)]]  # per class, per client: from where to where
    counts = np.random.default_rng(0).integers(1, 9, (5000, 3))
    many = plot_partition(counts, ("x", "y", "z"), "many").axes[0]
    assert many.images[0].get_array().shape == (3, 2000)
