"""Bytes of a round, by hand."""

import numpy as np
import torch

from raysim.federation.metrics.communication import communication_metrics, down_bytes
from raysim.training.aggregation import FixedPoint


def test_what_is_sent_by_hand():
    broadcast = {"shared": torch.zeros(10), "control": torch.zeros(5)}
    messages = {"own": np.zeros((7, 3), np.float32)}
    assert down_bytes(broadcast, messages) == 4 * (10 + 5 + 3)  # to one client: its row of the message
    sums = {"shared": FixedPoint(np.zeros(10, np.int64), 0, 1), "control": FixedPoint(np.zeros(5, np.int64), 0, 1)}
    metrics = communication_metrics(72, sums, cohort_size=7, senders=6)
    assert metrics == {"communication/down_bytes": 7 * 72.0, "communication/up_bytes": 6 * 60.0}
