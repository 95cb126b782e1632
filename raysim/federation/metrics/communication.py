"""``communication/...``: the bytes that a real federation would send in a round, over all clients of the cohort."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import NDArray
from torch import Tensor

from raysim.training.aggregation import FixedPoint

FLOAT_BYTES = 4


def down_bytes(broadcast: Mapping[str, Tensor], messages: Mapping[str, NDArray]) -> int:
    """Bytes sent to one client: the broadcast, and its row of each message (K, m)."""
    return FLOAT_BYTES * (sum(t.numel() for t in broadcast.values()) + sum(rows.shape[1] for rows in messages.values()))


def communication_metrics(
    down: int, sums: Mapping[str, FixedPoint], cohort_size: int, senders: int
) -> dict[str, float]:
    """For a cohort whose clients were sent ``down`` bytes each, and of which ``senders`` sent uploads back."""
    up = FLOAT_BYTES * sum(len(s.total) for s in sums.values())
    return {"communication/down_bytes": float(down * cohort_size), "communication/up_bytes": float(up * senders)}
