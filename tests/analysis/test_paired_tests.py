import numpy as np
import pytest
from scipy import stats

from raysim.analysis.paired_tests import bootstrap, gains, interval, signed_rank


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


@pytest.mark.parametrize(
    ("seeds", "clients", "between", "within"), [(3, 16, 2, 4), (3, 64, 2, 4), (5, 16, 2, 4), (3, 16, 0, 8)]
)
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, clients, between, within):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = interval([rng.normal(rng.normal(1, between), within, clients) for _ in range(seeds)])
        covered += low < 1.0 < high
    assert covered / 200 > 0.92


def test_one_seed_has_an_interval_over_its_clients():
    low, high = interval([np.arange(20.0)])
    assert (low, high) == bootstrap([np.arange(20.0)])
    assert 5 < low < 9.5 < high < 14


def test_ties_are_ties_up_to_rounding():
    base = np.array([0.1 + 0.2, 0.5])
    table = gains({"base": {0: base}, "same": {0: np.array([0.3, 0.5 + 1e-9])}}, "base")
    assert table[["wins", "ties", "losses"]].values.tolist() == [[0, 2, 0]]


def test_seeds_that_differ_widen_the_interval():
    rng = np.random.default_rng(2)
    clients = [rng.normal(0, 1, 200) for _ in range(3)]
    same = np.subtract(*bootstrap(clients)[::-1])
    shifted = np.subtract(*bootstrap([c + s for c, s in zip(clients, (-2, 0, 2), strict=True)])[::-1])
    assert shifted > 5 * same


def test_the_interval_is_the_same_every_time():
    samples = [np.arange(5.0), np.arange(7.0)]
    assert bootstrap(samples) == bootstrap(samples)


def test_the_signed_rank_test_is_that_of_scipy():
    differences = np.array([1.0, 2.0, -3.0, 4.0, 5.0, 6.0, 0.0])
    # ranks 1 to 6; the negative one has rank 3: of 2^6 signs, those with a sum of at most 3 are 5, so p = 2 * 5 / 64
    assert signed_rank(differences) == pytest.approx(10 / 64)
    many = np.random.default_rng(0).normal(0.3, 1, 80)
    assert signed_rank(many) == pytest.approx(stats.wilcoxon(many).pvalue, rel=1e-4)
    assert np.isnan(signed_rank(np.zeros(4)))
    table = gains({"base": {0: np.zeros(6)}, "x": {0: np.array([1, 2, -3, 4, 5, 6]) / 100}}, "base")
    assert table[["p", "pairs"]].values.tolist() == [[10 / 64, 6]]
