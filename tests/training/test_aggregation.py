import itertools

import numpy as np
import pytest
import torch

from raysim.algorithms import Upload
from raysim.training.aggregation import FixedPoint, PartialSum, Weights, acceptable, combine, weighted_sum

BITS = 40
ALONE = Weights(np.ones(1, np.int64), 1)


def one(value, count, planned):
    return weighted_sum(torch.tensor([[value]]), Weights(np.array([count]), planned), np.array([True]), BITS)


def test_the_mean_by_hand():
    values = torch.tensor([[1.0, -2.0], [4.0, 0.5]])
    sum_ = weighted_sum(values, Weights(np.array([1, 3]), 4), np.array([True, True]), BITS)
    assert sum_.total.tolist() == [int(3.25 * 2**40), int(-0.125 * 2**40)]
    assert sum_.weight == 4
    assert sum_.mean(BITS).tolist() == [3.25, -0.125]


def test_bits_do_not_depend_on_order_or_grouping():
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(6, 50)).astype(np.float32)) * torch.logspace(-6, 6, 6)[:, None]
    counts = rng.integers(1, 100, 6)
    weights = Weights(counts, int(counts.sum()))
    batches = [weighted_sum(values[i : i + 2], weights[i : i + 2], np.ones(2, bool), BITS) for i in (0, 2, 4)]
    means = set()
    for a, b, c in itertools.permutations(batches):
        means.add((a + b + c).mean(BITS).numpy().tobytes())
        means.add((a + (b + c)).mean(BITS).numpy().tobytes())
    assert len(means) == 1
    exact = (values.double() * torch.from_numpy(weights.shares)[:, None]).sum(0)
    torch.testing.assert_close((batches[0] + batches[1] + batches[2]).mean(BITS), exact, rtol=1e-9, atol=1e-9)


def test_shares_of_ten_million_clients_sum_to_one():
    """Each client in a batch of its own. Where shares were rounded one by one, every mean was too large by 1.5e-6 of it."""
    many = 10_000_000
    values = torch.from_numpy(np.random.default_rng(0).normal(3, 1, 10**6).astype(np.float32))
    each = weighted_sum(values[None], Weights(np.ones(1, np.int64), many), np.array([True]), BITS)
    everyone = FixedPoint(np.array([each.total.sum() * 10]), each.weight * many, many)  # every value in ten clients
    assert everyone.mean(BITS).item() == pytest.approx(values.double().mean().item(), rel=1e-8)


def test_the_largest_values_do_not_overflow():
    largest = float(np.nextafter(np.float32(2**22), np.float32(0)))
    total = FixedPoint(np.zeros(1, np.int64), 0, 10)
    for _ in range(10):
        total = total + one(largest, 1, 10)
    assert total.mean(BITS).item() == pytest.approx(largest, rel=1e-9)


def test_what_is_rejected():
    values = torch.tensor([[1.0, 2.0], [torch.nan, 0], [torch.inf, 0], [0, -(2.0**22)], [2.0**21, 0]])
    state = torch.zeros(5, 3)
    state[4, 1] = torch.nan
    checked = acceptable({"shared": values}, {"personal": state}, {"shared": Upload()})
    assert checked.tolist() == [True, False, False, False, False]
    assert acceptable({"v": values}, {}, {"v": Upload(scale_bits=39)}).tolist() == [True, False, False, True, True]
    for bounds in (torch.tensor([2.0, torch.nan, torch.inf, 5e6, 3e6]), torch.tensor([2.0, 1.0, 1.0, 2.0**22, 1.0])):
        checked = acceptable({"shared": values}, {}, {"shared": Upload()}, {"shared": bounds})
        assert checked.tolist() == [True, False, False, False, True]  # a bound that is too large decides nothing
    small = torch.full((5,), 2.0**21)
    assert acceptable({"shared": values}, {}, {"shared": Upload()}, {"shared": small}).all()  # nothing is looked at


def test_a_rejected_client_has_no_part_and_the_rest_is_rescaled():
    values = torch.tensor([[2.0], [torch.nan], [4.0]])
    sum_ = weighted_sum(values, Weights(np.array([1, 2, 1]), 4), np.array([True, False, True]), BITS)
    assert sum_.weight == 2
    assert sum_.mean(BITS).tolist() == [3.0]


def test_no_client_accepted_is_no_mean():
    assert weighted_sum(torch.ones(1, 1), ALONE, np.array([False]), BITS).mean(BITS) is None


def test_a_larger_scale_keeps_tiny_values():
    tiny = torch.tensor([[3e-15]])
    coarse = weighted_sum(tiny, ALONE, np.array([True]), 40).mean(40)
    fine = weighted_sum(tiny, ALONE, np.array([True]), 60).mean(60)
    assert coarse.item() == 0
    assert fine.item() == pytest.approx(3e-15, rel=1e-3)


def partial(round_, batches):
    part = PartialSum(round_)
    for batch, value in batches.items():
        part.add(batch, {"shared": one(value, 1, 2)})
    return part


def test_adding_a_batch_twice_is_a_no_op():
    part = partial(0, {0: 1.0})
    part.add(0, {"shared": one(1.0, 1, 2)})
    assert part.sums["shared"].weight == 1


def test_combine_wants_disjoint_and_complete_parts():
    sums = combine([partial(3, {0: 1.0}), partial(3, {1: 3.0}), PartialSum(3)], 3, {0, 1}).sums
    assert sums["shared"].mean(BITS).tolist() == [2.0]
    with pytest.raises(AssertionError, match="missing"):
        combine([partial(3, {0: 1.0})], 3, {0, 1})
    with pytest.raises(AssertionError, match="twice"):
        combine([partial(3, {0: 1.0}), partial(3, {0: 1.0})], 3, {0})
    with pytest.raises(AssertionError, match="round 2"):
        combine([partial(2, {0: 1.0})], 3, {0})
