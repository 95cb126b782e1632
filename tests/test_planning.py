import numpy as np
import pytest

from raysim.planning import cut, padding
from raysim.tasks import Task


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
    batches = [Task("train", i, 0, np.array(ids), np.array(ids)) for i, ids in enumerate([[0, 1], [2, 3], [4]])]
    assert padding(batches, num_train) == pytest.approx(1 - 13 / (8 + 6 + 1))
    assert padding(batches[1:], num_train) == 0
