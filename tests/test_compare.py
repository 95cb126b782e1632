import numpy as np
import pandas as pd

from raysim.compare import compare, percent
from raysim.plots import plot_comparison, plot_partition


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


def test_percent():
    assert percent(pd.Series([0.5])) == "50.0"
    assert percent(pd.Series([0.5, 0.6])) == "55.0 ± 7.1"


def test_the_comparison_has_a_line_per_name_and_a_band_over_seeds():
    (axes,) = plot_comparison(history(), "title").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a (2 seeds)", "b"]
    assert len(axes.collections) == 1
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.2, 0.4, 0.6])
    assert axes.get_title() == "title"


def test_the_partition_is_bars_for_few_clients_and_a_heat_map_for_many():
    few = plot_partition(np.array([[3, 1], [0, 2]]), ("x", "y"), "few").axes[0]
    extents = [[(p.vertices[:, 1].min(), p.vertices[:, 1].max()) for p in c.get_paths()] for c in few.collections]
    assert extents == [[(0, 3), (0, 0)], [(3, 4), (0, 2)]]  # per class, per client: from where to where
    counts = np.random.default_rng(0).integers(1, 9, (5000, 3))
    many = plot_partition(counts, ("x", "y", "z"), "many").axes[0]
    assert many.images[0].get_array().shape == (3, 2000)
