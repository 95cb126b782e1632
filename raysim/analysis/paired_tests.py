"""Is a difference real? Methods against a baseline, paired by seed and client: gains, intervals, the signed-rank test."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 10_000
MOST_DRAWN = 2**20  # members of resamples in memory at a time
TIE = 1e-4  # points: means of equal counts differ by rounding
ClientAccuracy = Mapping[int, NDArray[np.float64]]
"""Seed to accuracy (N,) of every client, NaN where it is not known."""


def gains(
    accuracy: Mapping[str, ClientAccuracy], baseline: str, personal_bytes: Mapping[str, int] | None = None
) -> pd.DataFrame:
    """Every method against a baseline, best first: a row per method, differences in percentage points.

    The same seed gives the same clients, so that methods are paired by seed and client. The 95 % interval is the wider of
    two: a bootstrap over seeds and the clients of a seed, which alone is too narrow when few seeds differ much, and
    Student's t over the means of the seeds, which alone is too narrow when they happen to agree. With one seed it covers
    clients only. ``p`` is that of Wilcoxon's signed-rank test (two-sided, scipy's) over all ``pairs`` of a seed and a
    client, ties left out. Clients of a seed share one server, so p holds only for the clients of these runs; the
    interval holds for other seeds, too.

    Args:
        accuracy: per method.
        personal_bytes: what a client keeps, per method; adds ``kB`` and ``per kB``, points gained per kilobyte beyond what
            the baseline keeps.
    """
    base = accuracy[baseline]
    rows = []
    for name, of_seed in accuracy.items():
        if name == baseline:
            continue
        differences = [100 * (of_seed[seed] - base[seed]) for seed in of_seed if seed in base]
        differences = [d[np.isfinite(d)] for d in differences if np.isfinite(d).any()]
        if not differences:
            continue
        low, high = interval(differences)
        gain = float(np.mean([d.mean() for d in differences]))
        pooled = np.concatenate(differences)
        row: dict[str, object] = {
            "name": name,
            "gain": gain,
            "low": low,
            "high": high,
            "wins": int((pooled > TIE).sum()),
            "ties": int((np.abs(pooled) <= TIE).sum()),
            "losses": int((pooled < -TIE).sum()),
            "p": signed_rank(pooled),
            "pairs": len(pooled),
            "seeds": len(differences),
        }
        if personal_bytes is not None:
            kilobytes = (personal_bytes[name] - personal_bytes[baseline]) / 1000
            row |= {"kB": kilobytes, "per kB": gain / kilobytes if kilobytes > 0 else np.nan}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("gain", ascending=False, ignore_index=True) if rows else pd.DataFrame()


def signed_rank(differences: NDArray[np.float64]) -> float:
    """The p-value of Wilcoxon's signed-rank test; NaN if all are ties."""
    untied = differences[np.abs(differences) > TIE]
    return float(stats.wilcoxon(untied.round(6)).pvalue) if len(untied) else np.nan


def interval(samples: list[NDArray[np.float64]]) -> tuple[float, float]:
    """The wider of ``bootstrap`` and Student's t over the means of ``samples``, one array per seed, around their mean."""
    low, high = bootstrap(samples)
    means = np.array([sample.mean() for sample in samples])
    if len(means) > 1:
        below, above = student(means)
        low, high = min(low, below), max(high, above)
    return float(low), float(high)


def student(values: NDArray[np.float64]) -> tuple[float, float]:
    """Student's 95 % interval for the mean of two values or more."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap(samples: list[NDArray[np.float64]], resamples: int = RESAMPLES) -> tuple[float, float]:
    """A 95 % interval for the mean of the groups' means: groups are resampled, and the members of each.

    ``samples`` has one array per group (a seed), of any length (its clients).
    """
    rng = np.random.default_rng(0)
    means = np.stack([_resampled(rng, s, resamples) for s in samples], axis=1)
    chosen = rng.integers(0, len(samples), (resamples, len(samples)))
    # Where a group is chosen twice, the second needs members of its own.
    rows = np.stack([rng.permutation(resamples) for _ in samples], axis=1)
    low, high = np.percentile(means[rows, chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _resampled(rng: np.random.Generator, sample: NDArray[np.float64], resamples: int) -> NDArray[np.float64]:
    """Means (resamples,) of resamples as large as the sample; a few at a time, since it may have 100,000 members."""
    n = len(sample)
    at_a_time = max(1, MOST_DRAWN // n)
    sizes = [min(at_a_time, resamples - start) for start in range(0, resamples, at_a_time)]
    return np.concatenate([sample[rng.integers(0, n, (size, n))].mean(axis=1) for size in sizes])
