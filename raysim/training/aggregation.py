"""The exact weighted mean: the same bits for any order, any grouping over workers, and after any retry.

Floating-point addition depends on its order; integer addition does not. The weighted sum of a client batch (float64, in
the batch's own order, which is a function of the cohort alone) is rounded once to fixed point; from there on only int64
are added. A client counts with its planned share, and these sum to 1 over the cohort, so no sum can overflow. What arrived is
counted in integers, too, so that shares of any number of clients sum to exactly 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.algorithms import FederatedAlgorithm, Upload

TOTAL_BITS = 62  # values below 2^(62 - scale_bits), so that a mean of them fits into an int64
# How many numbers are converted to float64 at a time: on a CPU they stay in its cache, a GPU has no room for all of them.
SUM_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}


@dataclass(frozen=True)
class Weights:
    """The weights of K clients: integers, and what they sum to over the whole cohort.

    Attributes:
        counts: (K,), a client's training samples, or 1; 0 if it does not report.
        planned: the sum over the cohort if everyone reports.
    """

    counts: NDArray[np.int64]
    planned: int

    def __getitem__(self, index: slice) -> Weights:
        return Weights(self.counts[index], self.planned)

    def accepted(self, accepted: NDArray[np.bool_]) -> Weights:
        """The same with 0 for clients that are not accepted."""
        return Weights(np.where(accepted, self.counts, 0), self.planned)

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K,)"""
        shares: NDArray[np.float64] = self.counts / self.planned
        return shares


@dataclass(frozen=True)
class FixedPoint:
    """A sum over clients, each with its share, as integers: ``total / 2^scale_bits``.

    Attributes:
        weight: the weights that went into it, of ``planned``.
    """

    total: NDArray[np.int64]
    weight: int
    planned: int

    def __add__(self, other: FixedPoint) -> FixedPoint:
        assert self.planned == other.planned, "sums of different cohorts"
        return FixedPoint(self.total + other.total, self.weight + other.weight, self.planned)

    def mean(self, scale_bits: int) -> Tensor | None:
        """The mean (n,) float64, rescaled by the weight that arrived; None if none did."""
        if self.weight == 0:
            return None
        return torch.from_numpy(self.total.astype(np.float64) * (self.planned / self.weight * 2.0**-scale_bits))


def acceptable(
    uploads: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    declared: Mapping[str, Upload],
    bounds: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """(K,) bool: whether a client's uploads fit into fixed point and its uploads and state are finite. Each is (K, n).

    ``bounds``: what entries of some uploads are known not to exceed, (K,): they are looked at only where that is not enough.
    """
    checks = []
    for name, values in uploads.items():
        assert values.dim() == 2, (
            f"the upload {name!r} must be a vector per client, not of shape {tuple(values.shape)[1:]}"
        )
        limit = 2.0 ** (TOTAL_BITS - declared[name].scale_bits)
        if bounds is None or name not in bounds or not bool((bounds[name] < limit).all()):
            checks.append(_within(values, limit))
    checks += [_within(values, float("inf")) for values in kept.values()]
    rows = len(next(iter(uploads.values())))
    nothing = torch.ones(rows, dtype=torch.bool, device=checks[0].device if checks else "cpu")
    return torch.stack([nothing, *checks]).all(dim=0)


def _within(values: Tensor, limit: float) -> Tensor:
    """(K,) bool: rows of (K, n) whose entries are all below a limit in absolute value; false for NaN, too.

    Largest and smallest entry take a tenth of the time of ``(values.abs() < limit).all()``, and no memory.
    """
    if not values.shape[1]:
        return values.new_ones(len(values), dtype=torch.bool)
    return (values.amax(dim=1) < limit) & (values.amin(dim=1) > -limit)


def mean_uploads(algorithm: FederatedAlgorithm, sums: Mapping[str, FixedPoint]) -> dict[str, Tensor]:
    """The mean (n,) float64 of each upload; empty if no client reported, or all weights that they sent are 0."""
    uploads = algorithm.uploads
    found = {name: sums[name].mean(up.scale_bits) for name, up in uploads.items() if name in sums}
    means = {name: mean for name, mean in found.items() if mean is not None}
    if len(means) < len(uploads):
        return {}
    weights = {name: means[up.times] for name, up in uploads.items() if up.times is not None}
    if any(not weight for weight in weights.values()):
        return {}
    return {name: mean / weights[name] if name in weights else mean for name, mean in means.items()}


def weighted_sum(values: Tensor, weights: Weights, accepted: NDArray[np.bool_], scale_bits: int) -> FixedPoint:
    """Clients' values (K, n) and weights (K,) to fixed point; clients that are not accepted have no part in it."""
    weights = weights.accepted(accepted)
    total = float64_sum(values, torch.from_numpy(weights.shares).to(values.device), accepted)
    return fixed_point(total, weights, scale_bits)


def fixed_point(total: Tensor, weights: Weights, scale_bits: int) -> FixedPoint:
    """A float64 sum (n,) of clients with these weights rounded to integers; overwrites it."""
    integers = total.mul_(2.0**scale_bits).round_().to(torch.int64).cpu().numpy()
    return FixedPoint(integers, int(weights.counts.sum()), weights.planned)


def float64_sum(values: Tensor, factors: Tensor, accepted: NDArray[np.bool_]) -> Tensor:
    """``sum_k factors[..., k] * values[k]`` (..., n) in float64, of values (K, n) float32 and factors (..., K) float64.

    Rows that are not accepted may hold anything, NaN too, and are left out.
    """
    if not accepted.all():
        chosen = torch.from_numpy(accepted).to(values.device)
        values, factors = values[chosen], factors[..., chosen]
    at_a_time = SUM_ELEMENTS.get(values.device.type, 2**25)
    pieces = values.split(max(1, at_a_time // max(1, len(values))), dim=1)
    sums = [factors @ piece.double() for piece in pieces]
    return sums[0] if len(sums) == 1 else torch.cat(sums, dim=-1)


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
                self.sums[name] = replace(self.sums[name], weight=self.sums[name].weight + value.weight)
            else:
                self.sums[name] = replace(value, total=value.total.copy())


def merged(parts: Iterable[PartialSum], round: int) -> PartialSum:
    """The partial sums of several actors, which must be disjoint, as one. Integers: any order and grouping is the same."""
    whole = PartialSum(round)
    for part in parts:
        assert part.round == round, f"a partial sum of round {part.round} arrived in round {round}"
        assert not part.batches & whole.batches, f"client batches {part.batches & whole.batches} were summed twice"
        whole.batches |= part.batches
        for name, value in part.sums.items():
            whole.sums[name] = whole.sums[name] + value if name in whole.sums else value
    return whole


def combine(parts: Iterable[PartialSum], round: int, batches: set[int]) -> dict[str, FixedPoint]:
    """One sum per upload from the partial sums of all actors, which must be disjoint and complete."""
    whole = merged(parts, round)
    assert whole.batches == batches, f"client batches {batches ^ whole.batches} are missing or foreign"
    return whole.sums
