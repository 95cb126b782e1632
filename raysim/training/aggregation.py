"""The exact weighted mean: the same bits for any order, any grouping over workers, and after any retry.

Floating-point addition depends on its order; integer addition does not. The weighted sum of a client batch (float64, in
the batch's own order, which is a function of the cohort alone) is rounded once to fixed point; from there on only int64
are added. Weights are the clients' planned shares, which sum to 1 over the cohort, so no sum can overflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithms import Upload

TOTAL_BITS = 62  # values below 2^(62 - scale_bits), so that a mean of them fits into an int64
WEIGHT_BITS = 40
SUM_ELEMENTS = 2**18  # how many are converted to float64 at a time, so that they stay in a CPU's cache


@dataclass(frozen=True)
class FixedPoint:
    """A weighted sum and the weight that went into it, both integers: ``total / 2^scale_bits`` and ``weight / 2^40``."""

    total: NDArray[np.int64]
    weight: int

    def __add__(self, other: FixedPoint) -> FixedPoint:
        return FixedPoint(self.total + other.total, self.weight + other.weight)

    def mean(self, scale_bits: int) -> Tensor | None:
        """The mean (n,) float64, rescaled by the weight that arrived; None if none did."""
        if self.weight == 0:
            return None
        return torch.from_numpy(self.total.astype(np.float64) * (2.0 ** (WEIGHT_BITS - scale_bits) / self.weight))


def acceptable(uploads: Mapping[str, Tensor], kept: Mapping[str, Tensor], declared: Mapping[str, Upload]) -> Tensor:
    """(K,) bool: whether a client's uploads fit into fixed point and its uploads and state are finite. Each is (K, n)."""
    checks = []
    for name, values in uploads.items():
        assert values.dim() == 2, (
            f"the upload {name!r} must be a vector per client, not of shape {tuple(values.shape)[1:]}"
        )
        checks.append(_within(values, 2.0 ** (TOTAL_BITS - declared[name].scale_bits)))
    checks += [_within(values, float("inf")) for values in kept.values()]
    return torch.stack(checks).all(dim=0)


def _within(values: Tensor, limit: float) -> Tensor:
    """(K,) bool: rows of (K, n) whose entries are all below a limit in absolute value; false for NaN, too.

    Largest and smallest entry take a tenth of the time of ``(values.abs() < limit).all()``, and no memory.
    """
    if not values.shape[1]:
        return values.new_ones(len(values), dtype=torch.bool)
    return (values.amax(dim=1) < limit) & (values.amin(dim=1) > -limit)


def weighted_sum(
    values: Tensor, weights: NDArray[np.float64], accepted: NDArray[np.bool_], scale_bits: int
) -> FixedPoint:
    """Clients' values (K, n) and planned shares (K,) to fixed point; clients that are not accepted have no part in it."""
    shares = np.where(accepted, weights, 0.0)
    total = float64_sum(values, torch.from_numpy(shares).to(values.device), accepted)
    weight = sum(round(share * 2**WEIGHT_BITS) for share in shares.tolist())
    return fixed_point(total, weight, scale_bits)


def fixed_point(total: Tensor, weight: int, scale_bits: int) -> FixedPoint:
    """A float64 sum (n,) rounded to integers; overwrites it."""
    return FixedPoint(total.mul_(2.0**scale_bits).round_().to(torch.int64).cpu().numpy(), weight)


def float64_sum(values: Tensor, factors: Tensor, accepted: NDArray[np.bool_]) -> Tensor:
    """``sum_k factors[k] * values[k]`` (n,) in float64, of values (K, n) float32 and factors (K,) float64.

    Rows that are not accepted may hold anything, NaN too, and are left out.
    """
    if not accepted.all():
        chosen = torch.from_numpy(accepted).to(values.device)
        values, factors = values[chosen], factors[chosen]
    if values.numel() <= SUM_ELEMENTS or values.device.type != "cpu":
        return factors @ values.double()
    return torch.cat([factors @ piece.double() for piece in values.split(max(1, SUM_ELEMENTS // len(values)), dim=1)])


@dataclass
class PartialSum:
    """What one client actor has summed up in one round: it names its round and the client batches in it.

    Adding a client batch twice is a no-op, so a batch that is sent again can do no harm.
    """

    round: int
    batches: set[int] = field(default_factory=set)
    sums: dict[str, FixedPoint] = field(default_factory=dict)

    def add(self, batch: int, sums: Mapping[str, FixedPoint]) -> None:
        if batch in self.batches:
            return
        self.batches.add(batch)
        for name, value in sums.items():
            if name in self.sums:  # in place: these are as long as the model, and there is one for every client batch
                np.add(self.sums[name].total, value.total, out=self.sums[name].total)
                self.sums[name] = FixedPoint(self.sums[name].total, self.sums[name].weight + value.weight)
            else:
                self.sums[name] = FixedPoint(value.total.copy(), value.weight)


def combine(parts: Iterable[PartialSum], round: int, batches: set[int]) -> dict[str, FixedPoint]:
    """One sum per upload from the partial sums of all actors, which must be disjoint and complete."""
    whole = PartialSum(round)
    for part in parts:
        assert part.round == round, f"a partial sum of round {part.round} arrived in round {round}"
        assert not part.batches & whole.batches, f"client batches {part.batches & whole.batches} were summed twice"
        whole.batches |= part.batches
        for name, value in part.sums.items():
            whole.sums[name] = whole.sums[name] + value if name in whole.sums else value
    assert whole.batches == batches, f"client batches {batches ^ whole.batches} are missing or foreign"
    return whole.sums
