import numpy as np
import pytest

from raysim.statistics import bootstrap, gains


def test_gains_by_hand():
    accuracy = {
        "base": {0: np.array([0.5, 0.5, np.nan]), 1: np.array([0.2, 0.4, 0.6])},
        "worse": {0: np.array([0.4, 0.4, 0.9]), 1: np.array([0.1, 0.3, 0.5])},
        "mixed": {0: np.array([0.7, 0.5, 0.1]), 1: np.array([0.1, 0.5, 0.6]), 7: np.array([1.0, 1.0, 1.0])},
    }
    table = gains(accuracy, "base", {"base": 0, "worse": 2000, "mixed": 0}).set_index("name")
    assert list(table.index) == ["mixed", "worse"]
    mixed = table.loc["mixed"]
    assert mixed["gain"] == pytest.approx(
        (10 + 0) / 2
    )  # means of two clients and of three; a seed without a pair is left out
    assert (mixed["wins"], mixed["ties"], mixed["losses"], mixed["seeds"]) == (2, 2, 1, 2)
    assert np.isnan(mixed["per kB"])
    worse = table.loc["worse"]
    assert [worse["gain"], worse["low"], worse["high"]] == pytest.approx([-10, -10, -10])
    assert worse["per kB"] == pytest.approx(-5)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = bootstrap([rng.normal(1.0, 1.0, 40) for _ in range(8)], resamples=400)
        covered += low < 1.0 < high
    assert 0.9 < covered / 300 <= 1.0


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(2)
    clients = [rng.normal(0, 1, 200) for _ in range(3)]
    same = np.subtract(*bootstrap(clients)[::-1])
    shifted = np.subtract(*bootstrap([c + s for c, s in zip(clients, (-2, 0, 2), strict=True)])[::-1])
    assert shifted > 5 * same


def test_the_interval_is_the_same_every_time():
    samples = [np.arange(5.0), np.arange(7.0)]
    assert bootstrap(samples) == bootstrap(samples)
