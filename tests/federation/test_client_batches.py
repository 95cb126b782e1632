import numpy as np
import pytest

from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.federation.client_batches import BatchPlanner, cut, padding
from raysim.federation.cohort import participation
from raysim.storage.personal_states import SlotIndex
from raysim.training.tasks import Evaluate

from configs import tiny


def test_client_batches_are_a_function_of_the_cohort_largest_first():
    clients, sizes = np.array([2, 5, 7, 8, 9]), np.array([10, 30, 10, 20, 40])
    batches = [batch.tolist() for batch in cut(clients, sizes, 2)]
    assert batches == [[9, 5], [8, 2], [7]]
    order = np.array([3, 0, 4, 1, 2])
    assert [batch.tolist() for batch in cut(clients[order], sizes[order], 2)] == batches


def test_no_clients_no_batches():
    assert cut(np.array([], np.int64), np.array([], np.int64), 4) == []


def test_padding_by_hand():
    num_train = np.array([4, 2, 3, 3, 1])
    batches = [
        Evaluate(round=0, index=i, clients=np.array(ids), read=np.array(ids))
        for i, ids in enumerate([[0, 1], [2, 3], [4]])
    ]
    assert padding(batches, num_train) == pytest.approx(1 - 13 / (8 + 6 + 1))
    assert padding(batches[1:], num_train) == 0


def test_who_does_not_report_has_no_weight():
    config = tiny(cohort={"fraction": 1.0, "dropout": 0.5, "stragglers": 0.5})
    partition = make_partition(config.data, load_dataset(config.data, 8), 0)
    planner = BatchPlanner(config, partition, SlotIndex(8))
    tasks = planner.train(3, np.arange(8), evaluate=True, sensitivity=False)
    reports, work = participation(config, 3, np.arange(8))
    assert 0 < reports.sum() < 8
    for task in tasks:
        assert task.write is None  # until a worker of some node gets it
        assert task.reports.tolist() == reports[task.clients].tolist()
        samples, uniform = task.weights["samples"], task.weights["uniform"]
        assert samples.counts.tolist() == np.where(task.reports, partition.num_train[task.clients], 0).tolist()
        assert uniform.counts.tolist() == task.reports.astype(int).tolist()
        assert (samples.planned, uniform.planned) == (partition.num_train.sum(), 8)
        assert (task.work_share is None) == bool((work[task.clients] == 1).all())
