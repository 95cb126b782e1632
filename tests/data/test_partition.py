import numpy as np

from raysim.data.dataset import Dataset
from raysim.data.partition import Partition


def test_the_training_samples_of_all_clients():
    partition = Partition(np.array([7, 8, 9, 3, 4, 5, 6]), np.array([0, 3, 7]), np.array([2, 1]))
    assert partition.all_train.tolist() == [7, 8, 3]


def test_what_many_clients_have_is_found_at_once():
    dataset = Dataset(
        np.zeros((6, 2, 2, 1), np.uint8), np.zeros(6, np.int64), ("a",), np.array([0, 0, 1, 1, 0, 1]), ("x", "y")
    )
    partition = Partition(np.array([1, 0, 2, 3, 4, 5]), np.array([0, 2, 4, 6]), np.array([1, 1, 1]))
    assert partition.client_domains(dataset.domains, dataset.domain_names).tolist() == ["x", "y", "mixed"]
    assert partition.tests(np.array([2, 0])).tolist() == [5, 0]
    each = [partition.test(c) for c in (0, 1, 2)]
    assert partition.tests(np.arange(3)).tolist() == np.concatenate(each).tolist()


def test_a_validation_split_lies_between_training_and_test_samples():
    partition = Partition(np.arange(9), np.array([0, 4, 9]), np.array([2, 1]), np.array([1, 2]))
    assert [partition.train(c).tolist() for c in (0, 1)] == [[0, 1], [4]]
    assert partition.validations(np.array([1, 0])).tolist() == [5, 6, 2]
    assert [partition.test(c).tolist() for c in (0, 1)] == [[3], [7, 8]]
    assert partition.tests(np.array([1, 0])).tolist() == [7, 8, 3]
    assert partition.held_out(1).tolist() == [5, 6, 7, 8]
    assert (partition.num_held_out.tolist(), partition.num_test.tolist()) == ([2, 4], [1, 2])
    assert partition.all_train.tolist() == [0, 1, 4]
    assert partition.reordered(np.array([1, 0])).num_validation.tolist() == [2, 1]
    assert partition.digest != Partition(partition.indices, partition.offsets, partition.num_train).digest


def test_reordered_clients_keep_their_samples():
    partition = Partition(np.array([5, 6, 1, 2, 3, 9]), np.array([0, 2, 5, 6]), np.array([1, 2, 1]))
    other = partition.reordered(np.array([2, 0, 1]))
    assert other.offsets.tolist() == [0, 1, 3, 6]
    assert (other.train(1).tolist(), other.test(1).tolist()) == ([5], [6])
    assert (other.train(2).tolist(), other.test(2).tolist()) == ([1, 2], [3])


def test_samples_that_are_trained_and_tested_on_or_twice_there_are_counted():
    offsets, num_train = np.array([0, 3, 7]), np.array([2, 2])
    assert Partition(np.array([0, 1, 2, 3, 4, 5, 6]), offsets, num_train).overlaps == []
    leaking = Partition(np.array([0, 1, 3, 3, 4, 1, 0]), offsets, num_train)
    assert leaking.overlaps == ["3 of 3 test samples are training samples of another client"]
    twice = Partition(np.array([0, 0, 2, 3, 4, 5, 5]), offsets, num_train)
    assert twice.overlaps == ["2 samples are in one client more than once: 2 of 7 are repetitions"]
    thrice = Partition(np.array([0, 1, 2, 5, 5, 4, 5]), offsets, np.array([2, 4]))
    assert thrice.overlaps == ["1 samples are in one client more than once: 2 of 7 are repetitions"]
    shared = Partition(np.array([0, 1, 2, 0, 1, 2, 3]), offsets, num_train)  # as some splits by domain have it
    assert shared.overlaps == []
