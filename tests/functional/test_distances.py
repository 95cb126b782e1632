"""The maximum mean discrepancy against its definition, pair by pair."""

import math

import pytest
import torch

from raysim.functional.batch import Batch
from raysim.functional.distances import BANDWIDTHS, mmd


def test_it_is_the_mean_over_pairs_of_samples_that_are_not_padded():
    torch.manual_seed(0)
    a, b = torch.randn(5, 3), torch.randn(5, 3)

    def kernel(x, y):
        return sum(math.exp(-float(((x - y) ** 2).sum()) / (2 * w)) for w in BANDWIDTHS)

    pairs = [(i, j) for i in range(3) for j in range(3)]
    expected = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) - 2 * kernel(a[i], b[j]) for i, j in pairs) / 9
    batch = Batch(torch.zeros(5, 1), torch.zeros(5), torch.tensor([1.0, 1, 1, 0, 0]))
    assert float(mmd(a, b, batch)) == pytest.approx(expected, abs=1e-5)
    assert float(mmd(a, a, batch)) == pytest.approx(0, abs=1e-5)
    many = torch.func.vmap(lambda x, y: mmd(x, y, batch))(torch.stack([a, b]), torch.stack([b, b]))
    torch.testing.assert_close(many[0], mmd(a, b, batch))
