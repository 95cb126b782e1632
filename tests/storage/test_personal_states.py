import numpy as np
import pytest

from raysim.errors import ConfigError
from raysim.storage.personal_states import NEVER_TRAINED, SlotFile, SlotIndex, check_space


def rows(*values):
    return np.array(values, np.float32)


def test_what_is_written_is_read_and_the_untrained_get_the_initial_state(tmp_path):
    store = SlotFile(tmp_path / "state", 2)
    store.write(np.array([3, 0]), rows([1, 2], [3, 4]))
    read = store.read(np.array([0, NEVER_TRAINED, 3]), rows(9, 9))
    assert read.tolist() == [[3, 4], [9, 9], [1, 2]]
    store.close()


def test_two_processes_views_of_one_file(tmp_path):
    writer, reader = SlotFile(tmp_path / "state", 2), SlotFile(tmp_path / "state", 2)
    writer.write(np.array([1]), rows([5, 6]))
    assert reader.read(np.array([1]), rows(0, 0)).tolist() == [[5, 6]]


def test_a_slot_that_was_never_written_is_no_state(tmp_path):
    with pytest.raises(AssertionError, match="slot 7"):
        SlotFile(tmp_path / "state", 2).read(np.array([7]), rows(0, 0))


def test_commit_switches_the_index_and_frees_the_old_slots():
    index = SlotIndex(4)
    first = index.allocate(2)
    assert index.addresses.tolist() == [NEVER_TRAINED] * 4  # nothing changes before the commit
    index.commit(np.array([1, 3]), first, np.array([True, True]))
    assert index.addresses.tolist() == [NEVER_TRAINED, 0, NEVER_TRAINED, 1]
    second = index.allocate(2)
    assert not set(second) & set(first)  # a retry still reads the first ones
    index.commit(np.array([1, 2]), second, np.array([True, True]))
    assert index.allocate(1).tolist() == [0]  # client 1's old slot
    assert (index.addresses != NEVER_TRAINED).sum() == 3


def test_a_rejected_client_keeps_its_slot_and_the_written_one_is_free():
    index = SlotIndex(2)
    index.commit(np.array([0, 1]), index.allocate(2), np.array([True, True]))
    written = index.allocate(2)
    index.commit(np.array([0, 1]), written, np.array([False, True]))
    assert index.addresses.tolist() == [0, written[1]]
    assert set(index.allocate(2).tolist()) == {1, int(written[0])}


def test_slots_are_never_handed_out_twice():
    rng, index = np.random.default_rng(0), SlotIndex(20)
    for _ in range(200):
        clients = rng.choice(20, 5, replace=False)
        slots = index.allocate(5)
        assert not set(slots.tolist()) & set(index.addresses.tolist())
        index.commit(clients, slots, rng.random(5) < 0.8)
    assert index._end[0] <= 25  # a cohort more than there are clients


def test_too_little_disk_is_said_before_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"need up to .* GiB.*TMPDIR"):
        check_space(tmp_path, 10**6, 10**9)
