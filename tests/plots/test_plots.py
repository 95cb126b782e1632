"""What is in a picture: numbers of its lines, dots and bars, not its pixels."""

import numpy as np
import pandas as pd
import pytest

from raysim.analysis.paired_tests import gains
from raysim.plots.clients import plot_client_accuracy, plot_heat_map, plot_who_gains
from raysim.plots.curves import plot_accuracy, plot_comparison
from raysim.plots.gains import plot_gains
from raysim.plots.palette import COLOURS
from raysim.plots.partition import plot_partition
from raysim.plots.style import as_png, colour, theme
from raysim.plots.timeline import plot_timeline

from histories import small_history


def test_the_comparison_has_a_line_per_name_over_rounds_and_over_megabytes():
    table = small_history()
    table.loc[table["name"] == "b", ["communication/down_bytes", "communication/up_bytes"]] = 0.0
    figure = plot_comparison(table, "personalized/accuracy_mean", "title")
    over_rounds, over_bytes, over_time = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a (2 seeds)", "b"]
    assert len(over_rounds.collections) == 1
    np.testing.assert_allclose(over_rounds.lines[0].get_ydata(), [0.2, 0.4, 0.6])
    np.testing.assert_allclose(over_rounds.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(over_bytes.lines[0].get_xdata(), [1.5, 3.0, 4.5])
    np.testing.assert_allclose(over_bytes.lines[1].get_ydata(), [0.25, 0.25])  # sends nothing: a level
    np.testing.assert_allclose(over_time.lines[0].get_xdata(), [2, 4, 6])
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


def test_a_run_has_a_band_from_the_10th_to_the_90th_percentile_of_its_clients():
    accuracy = np.stack([np.linspace(0, 1, 11), np.full(11, 0.5)])
    accuracy[0, 5] = np.nan
    axes = plot_accuracy(np.array([0, 4]), accuracy, "title").axes[0]
    mean, median, worst = (line.get_ydata() for line in axes.lines)
    np.testing.assert_allclose([mean, median, worst], [[0.5, 0.5], [0.5, 0.5], [0.0, 0.5]])
    assert axes.lines[0].get_xdata().tolist() == [1, 5]
    band = axes.collections[0].get_paths()[0].vertices
    low, high = np.nanpercentile(accuracy[0], [10, 90])
    assert band[:, 1].min() == pytest.approx(low)
    assert band[:, 1].max() == pytest.approx(high)


def test_clients_are_sorted_dots_side_by_side():
    figure = plot_client_accuracy({"a": np.array([0.3, np.nan, 0.1]), "b": np.array([0.9])}, "title")
    axes = figure.axes[0]
    dots = [c.get_offsets() for c in axes.collections if c.get_offsets().shape[0] and not hasattr(c, "get_segments")]
    assert [d[:, 1].tolist() for d in dots] == [[0.1, 0.3], [0.9]]
    assert dots[0][0, 0] < 0 < dots[0][1, 0] < 0.5 < dots[1][0, 0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b"]
    assert [t.get_text() for t in axes.texts] == ["20.0", "90.0"]


def test_who_gains_against_samples_and_entropy():
    table = pd.DataFrame(
        {"gain": [1.0, 2.0, 3.0, np.nan], "train_samples": [30, 20, 10, 5], "label_entropy": [0, 1, 2, 3]}
    )
    figure = plot_who_gains({"m": table, "other": table.assign(gain=-1.0)}, "local", "title")
    samples, entropy, other, _ = figure.axes
    assert samples.collections[0].get_offsets().tolist() == [[30, 1], [20, 2], [10, 3]]
    assert samples.get_title().startswith("rank correlation -1.00")
    assert entropy.get_title().startswith("rank correlation +1.00")
    assert "100 % of 3 gain" in samples.get_ylabel()
    assert "0 % of 4 gain" in other.get_ylabel()
    assert other.get_title() == ""  # all are equal: there is no correlation to tell


def test_the_heat_map_has_the_best_client_on_top_and_few_rows():
    accuracy = np.array([[0.1, 0.2, 0.3], [0.5, np.nan, 0.9]])
    axes = plot_heat_map(np.array([0, 9]), accuracy, "title").axes[0]
    assert axes.images[0].get_array().filled(-1).tolist() == [[0.3, 0.9], [0.1, 0.5], [0.2, -1]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["2", "0", "1"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "10"]
    many = plot_heat_map(np.array([0]), np.random.default_rng(0).random((1, 5000)), "title").axes[0]
    assert many.images[0].get_array().shape == (400, 1)


def test_the_timeline_shows_batches_and_gaps():
    rows = [(0, "train", 0.0, 1.0, 4), (0, "evaluate", 1.5, 0.5, 4), (3, "train", 0.0, 2.0, 4)]
    table = pd.DataFrame(rows, columns=["actor", "kind", "start", "seconds", "clients"])
    axes = plot_timeline(table, "round 3").axes[0]
    bars = [[p.vertices[:, 0].min(), p.vertices[:, 0].max()] for c in axes.collections for p in c.get_paths()]
    assert sorted(bars) == [[0.0, 1.0], [0.0, 2.0], [1.5, 2.0]]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["actor 0", "actor 3"]
    assert axes.get_title() == "round 3: 88 % busy"


def test_a_dark_background_has_light_ink():
    with theme("dark"):
        figure = plot_comparison(small_history(), "personalized/accuracy_mean", "title")
        last = colour(len(COLOURS))
        png = as_png(figure)
    assert figure.get_facecolor()[:3] == pytest.approx((13 / 255, 17 / 255, 23 / 255))
    assert last == "#e6edf3"
    assert as_png(plot_comparison(small_history(), "personalized/accuracy_mean", "title")) != png
    assert plot_comparison(small_history(), "personalized/accuracy_mean", "title").get_facecolor() == (1, 1, 1, 1)
    assert colour(len(COLOURS)) == "black"


def test_gains_without_costs_are_sorted_by_gain():
    accuracy = {n: {0: np.array([0.1, 0.2]) + g} for n, g in (("base", 0), ("x", 0.1), ("y", 0.2))}
    (points,) = plot_gains(gains(accuracy, "base"), "base", "title").axes
    assert [t.get_text() for t in points.get_yticklabels()] == ["x", "y"]


def test_a_dollar_in_a_name_is_a_dollar():
    odd = r"cost \frac $ {$x"
    accuracy = np.array([[0.1, 0.2], [0.3, 0.4]])
    for figure in (
        plot_partition(np.array([[3, 1], [2, 2]]), (odd, "b"), odd),
        plot_client_accuracy({odd: accuracy[0], "b": accuracy[1]}, odd),
        plot_heat_map(np.array([0, 1]), accuracy, odd),
        plot_accuracy(np.array([0, 1]), accuracy, odd),
    ):
        assert as_png(figure).startswith(b"\x89PNG")
    table = pd.DataFrame({"name": [odd, "b"], "gain": [1.0, 2.0], "low": [0.5, 1.0], "high": [2.0, 3.0]})
    figure = plot_gains(table.assign(kB=[1.0, 2.0], **{"per kB": [0.5, 1.0]}), odd, odd, {"head": 0.3})
    as_png(figure)
    assert not any(label.get_parse_math() for label in figure.axes[0].get_yticklabels())
    # A logarithmic axis has formulas, of which nothing may be left in the picture.
    assert all(label.get_parse_math() for label in figure.axes[1].get_xticklabels() if "$" in label.get_text())


def test_the_line_of_runs_that_ended_early_ends_with_the_first_of_them():
    table = small_history()
    name = table["name"].iloc[0]
    runs = table.loc[table["name"] == name, "run_id"].unique()
    last = table["round"].max()
    table = table[(table["run_id"] != runs[0]) | (table["round"] < last)]
    figure = plot_comparison(table, "personalized/accuracy_mean", "title")
    line = figure.axes[0].lines[0]
    assert max(line.get_xdata()) == last
    assert line.get_label() == f"{name} ({len(runs)} seeds, to round {last} of {last + 1})"
