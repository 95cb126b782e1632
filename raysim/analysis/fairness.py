"""How evenly a method serves its clients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysim.analysis.paired_tests import ClientAccuracy


def fairness(accuracy: Mapping[str, ClientAccuracy]) -> pd.DataFrame:
    """How evenly a method serves its clients: a row per method, means over seeds, accuracies in percent.

    ``std`` is the standard deviation over clients, ``worst decile`` and ``best decile`` the mean of a tenth of them (at least
    one), ``gini`` is in [0, 1], 0 where all are equal.
    """
    rows = []
    for name, of_seed in accuracy.items():
        known = [np.sort(a[np.isfinite(a)]) for a in of_seed.values()]
        tenth = [max(1, len(a) // 10) for a in known]
        rows.append(
            {
                "name": name,
                "std": 100 * np.mean([a.std() for a in known]),
                "worst decile": 100 * np.mean([a[:n].mean() for a, n in zip(known, tenth, strict=True)]),
                "best decile": 100 * np.mean([a[-n:].mean() for a, n in zip(known, tenth, strict=True)]),
                "gini": np.mean([gini(a) for a in known]),
                "clients": sum(len(a) for a in known),
                "seeds": len(known),
            }
        )
    return pd.DataFrame(rows)


def gini(values: NDArray[np.float64]) -> float:
    """The Gini coefficient of values (n,) >= 0: mean difference of two values over twice their mean; 0 if all are 0."""
    ordered, n = np.sort(values), len(values)
    if not ordered.sum():
        return 0.0
    return float((2 * np.arange(1, n + 1) - n - 1) @ ordered / (n * ordered.sum()))
