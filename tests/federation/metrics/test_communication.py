"""Bytes of a round, by hand."""

import numpy as np

from raysim.algorithms import Upload
from raysim.federation.metrics.cohort import TrainedCohort
from raysim.federation.metrics.communication import communication_metrics
from raysim.training.aggregation import ClientUploads, FixedPoint, PartialSum
from raysim.training.tasks import Train, TrainingReport

CLIENTS = np.arange(7)


def cohort(traffic=None, clients=CLIENTS):
    """Of which client 3 drops out."""
    task = Train(round=0, index=0, clients=clients, read=clients, weights={}, reports=clients != 3)
    return TrainedCohort([(task, TrainingReport(clients >= 0, {}, {}, {}, None, traffic))], np.ones(9, np.int64))


def total(size):
    return FixedPoint(np.zeros(size, np.int64), 0, 1)


def test_what_is_sent_by_hand():
    declared = {"shared": Upload(), "control": Upload()}
    uploads = PartialSum(0, sums={"shared": total(10), "control": total(5)})
    metrics = communication_metrics(declared, 10 + 5 + 3, uploads, 7, cohort())
    assert metrics == {"communication/down_bytes": 7 * 72.0, "communication/up_bytes": 6 * 60.0}


def test_groups_masks_and_uploads_of_each():
    declared = {
        "shared": Upload(groups="cluster"),
        "cluster": Upload(known=False),
        "mask": Upload(known=True),
        "own": Upload("each"),
    }
    each = ClientUploads(CLIENTS, {"own": np.zeros((7, 4), np.float32)})
    uploads = PartialSum(0, sums={"shared": total(30), "cluster": total(3), "mask": total(10)}, uploads=[each])
    metrics = communication_metrics(declared, 1, uploads, 7, cohort())
    assert metrics["communication/up_bytes"] == 6 * 4 * (10 + 3 + 4)  # once, whatever the number of means


def test_a_method_that_counts_for_itself():
    traffic = np.stack([CLIENTS * 2.0, CLIENTS + 10.0], axis=1)
    metrics = communication_metrics({}, 99, PartialSum(0), 8, cohort(traffic))  # one client has no result
    assert metrics == {
        "communication/down_bytes": 4 * 8 * 6.0,
        "communication/up_bytes": 4.0 * sum(i + 10 for i in range(7) if i != 3),
    }
