"""The exact weighted mean: the same bits for any order, any grouping over workers, and after any retry.

Floating-point addition depends on its order; integer addition does not. The weighted sum of a client batch (float64, in
the batch's own order, which is a function of the cohort alone) is rounded once to fixed point; from there on only int64
are added. A client counts with its planned share, and these sum to 1 over the cohort, so no sum can overflow. What arrived is
counted in integers, too, so that shares of any number of clients sum to exactly 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
        each = declared[name].weighting == "each"  # which is never summed
        limit = float("inf") if each else 2.0 ** (TOTAL_BITS - declared[name].scale_bits)
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


def mean_uploads(algorithm: FederatedAlgorithm, sums: Mapping[str, FixedPoint]) -> dict[str, Tensor] | None:
    """The mean (n,) float64 of each upload that has one; None if no client reported, or all weights that they sent are 0."""
    uploads = {name: up for name, up in algorithm.uploads.items() if up.weighting != "each"}
    found = {name: sums[name].mean(up.scale_bits) for name, up in uploads.items() if name in sums}
    means = {name: mean for name, mean in found.items() if mean is not None}
    if len(means) < len(uploads) or any(up.times is not None and not means[up.times] for up in uploads.values()):
        return None
    return {name: _weighed(mean, uploads[name], means) for name, mean in means.items()}


def _weighed(mean: Tensor, upload: Upload, means: Mapping[str, Tensor]) -> Tensor:
    """A mean over all clients as one over those that count in it; NaN where nobody does."""
    if upload.groups is not None:
        weights = means[upload.groups]
        return mean.view(len(weights), -1) / weights[:, None]
    return mean if upload.weighed_by is None else mean / means[upload.weighed_by]


def weighted_sum(values: Tensor, weights: Weights, accepted: NDArray[np.bool_], scale_bits: int) -> FixedPoint:
    """Clients' values (K, n) and weights (K,) to fixed point; clients that are not accepted have no part in it."""
    weights = weights.accepted(accepted)
    total = float64_sum(values, torch.from_numpy(weights.shares).to(values.device), accepted)
    return fixed_point(total, weights, scale_bits)


def fixed_point(total: Tensor, weights: Weights, scale_bits: int) -> FixedPoint:
    """A float64 sum (n,) of clients with these weights rounded to integers; overwrites it."""
    integers = total.mul_(2.0**scale_bits).round_().to(torch.int64).cpu().numpy()
    return FixedPoint(integers, int(weights.counts.sum()), weights.planned)


def grouped_sum(
    values: Tensor, members: Tensor, weights: Weights, accepted: NDArray[np.bool_], scale_bits: int
) -> FixedPoint:
    """k sums of clients' values (K, n), in which they count as ``members`` (K, k) say, one after another: (k * n,)."""
    weights = weights.accepted(accepted)
    shares = torch.from_numpy(weights.shares).to(values.device)
    total = float64_sum(values, (members.double() * shares[:, None]).T, accepted)
    return fixed_point(total.flatten(), weights, scale_bits)


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


@dataclass(frozen=True)
class ClientUploads:
    """What the server gets of each of K clients (``Upload("each")``), float32 rows (K, n) by name."""

    clients: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]

    @classmethod
    def merge(cls, parts: Sequence[ClientUploads]) -> ClientUploads:
        """Those of several client batches, in the order of the clients' ids."""
        if not parts:
            return cls(np.empty(0, np.int64), {})
        clients = np.concatenate([part.clients for part in parts])
        at = np.argsort(np.argsort(clients))
        values = {}
        for name, first in parts[0].values.items():
            rows = values[name] = np.empty((len(clients), first.shape[1]), np.float32)
            for part, here in zip(parts, np.split(at, np.cumsum([len(p.clients) for p in parts])[:-1]), strict=True):
                rows[here] = part.values[name]
        return cls(np.sort(clients), values)


@dataclass
class PartialSum:
    """What one client actor has summed up in one round: it names its round and the client batches in it.

    Adding a client batch twice is a no-op, so a batch that is sent again can do no harm.

    Attributes:
        uploads: of each client batch, what is not summed up.
    """

    round: int
    batches: set[int] = field(default_factory=set)
    sums: dict[str, FixedPoint] = field(default_factory=dict)
    uploads: list[ClientUploads] = field(default_factory=list)

    def add(self, batch: int, sums: Mapping[str, FixedPoint], uploads: ClientUploads | None = None) -> None:
        if batch in self.batches:
            return
        self.batches.add(batch)
        if uploads is not None:
            self.uploads.append(uploads)
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
        whole.uploads += part.uploads
        for name, value in part.sums.items():
            whole.sums[name] = whole.sums[name] + value if name in whole.sums else value
    return whole


def combine(parts: Iterable[PartialSum], round: int, batches: set[int]) -> PartialSum:
    """The partial sums of all actors, which must be disjoint and complete, as one."""
    whole = merged(parts, round)
    assert whole.batches == batches, f"client batches {batches ^ whole.batches} are missing or foreign"
    return whole
