import numpy as np
import pytest

from raysim.analysis.fairness import fairness, gini


def test_gini_by_hand():
    # mean absolute difference of [0, 1] over all four pairs: 1/2; over twice the mean of 1/2: 0.5
    assert gini(np.array([0.0, 1.0])) == pytest.approx(0.5)
    assert gini(np.array([0.3, 0.3, 0.3])) == pytest.approx(0.0)
    assert gini(np.zeros(3)) == 0.0
    values = np.random.default_rng(0).random(50)
    pairs = np.abs(values[:, None] - values[None]).mean() / (2 * values.mean())
    assert gini(values) == pytest.approx(pairs)


def test_fairness_by_hand():
    of_seed = {0: np.array([0.1, 0.3, np.nan]), 1: np.linspace(0.0, 0.95, 20)}
    row = fairness({"a": of_seed}).iloc[0]
    assert row["std"] == pytest.approx(100 * (0.1 + np.linspace(0.0, 0.95, 20).std()) / 2)
    assert row["worst decile"] == pytest.approx((10 + 2.5) / 2)  # the worst of two clients, the mean of two of twenty
    assert row["best decile"] == pytest.approx((30 + 92.5) / 2)
    assert (row["clients"], row["seeds"]) == (22, 2)
