"""``communication/...``: the bytes that a real federation would send in a round, over all clients of the cohort."""

from __future__ import annotations

from collections.abc import Mapping

from raysim.algorithms import Upload
from raysim.federation.metrics.cohort import TrainedCohort
from raysim.training.aggregation import PartialSum

FLOAT_BYTES = 4


def communication_metrics(
    declared: Mapping[str, Upload], sent: int, uploads: PartialSum, cohort_size: int, cohort: TrainedCohort
) -> dict[str, float]:
    """For a cohort whose clients were sent so many numbers each, broadcast and messages, and what they sent back.

    A method may count for itself (``FederatedAlgorithm.traffic``); a client that has no result then counts with what the
    others were sent on average.
    """
    down, up = float(sent * cohort_size), float(_numbers(declared, uploads) * cohort.sent.sum())
    traffic = [report.traffic for _, report in cohort.results if report.traffic is not None]
    if traffic:
        counts = cohort.traffic
        down, up = cohort_size * float(counts[:, 0].mean()), float(counts[cohort.sent, 1].sum())
    return {"communication/down_bytes": FLOAT_BYTES * down, "communication/up_bytes": FLOAT_BYTES * up}


def _numbers(declared: Mapping[str, Upload], uploads: PartialSum) -> int:
    """How many numbers a client sends."""
    each = uploads.uploads[0].values if uploads.uploads else {}
    count = sum(rows.shape[1] for rows in each.values())
    for name, total in uploads.sums.items():
        groups = declared[name].groups
        count += 0 if declared[name].known else len(total.total) // (len(uploads.sums[groups].total) if groups else 1)
    return count
