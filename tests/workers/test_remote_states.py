"""Personal states on several nodes, which here are one: the readers are real actors."""

import fcntl
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from raysim.errors import StatesLost
from raysim.storage.personal_states import NEVER_TRAINED, address
from raysim.workers.remote_states import LOG_LINES, PREFIX, NodeReader, StateNodes, States, TemporaryFile, tail

INITIAL = np.array([9, 9], np.float32)


def rows(*values):
    return np.array(values, np.float32)


@pytest.fixture
def two_nodes(cluster):
    """A second node that is this one again."""
    nodes = StateNodes(2)
    here = ray.get_runtime_context().get_node_id()
    nodes._start = lambda node_id, path: type(nodes)._start(nodes, here, path)
    assert nodes.number("another node") == 1
    yield nodes
    nodes.close()


def test_states_are_read_wherever_they_are(two_nodes):
    first, second = (States(node, path, 2) for node, path, _ in map(two_nodes.at, (0, 1)))
    for states in (first, second):
        states.readers = two_nodes.at(0)[2]
    first.write(address(0, np.array([0, 3])), rows([1, 2], [3, 4]))
    second.write(address(1, np.array([0])), rows([5, 6]))
    where = np.array([address(1, 0), NEVER_TRAINED, address(0, 3), address(0, 0)])
    for states in (first, second, two_nodes.own):
        assert states.read(where, INITIAL).tolist() == [[5, 6], [9, 9], [3, 4], [1, 2]]
    with pytest.raises(AssertionError, match="its own node only"):
        first.write(address(1, np.array([0])), rows([0, 0]))


def test_what_was_on_a_lost_node_is_said_to_be_lost(two_nodes):
    second = States(1, two_nodes.at(1)[1], 2)
    second.write(address(1, np.array([0])), rows([5, 6]))
    ray.kill(two_nodes._readers[1])

    def read_for_a_while():  # it may answer once more before it is gone
        for _ in range(100):
            two_nodes.own.read(address(1, np.array([0])), INITIAL)
            time.sleep(0.1)

    with pytest.raises(StatesLost, match="node 1 can't be read"):
        read_for_a_while()
    assert "does not answer" in two_nodes.log(1, "log")


def test_a_node_alone_needs_no_reader(cluster):
    nodes = StateNodes(2)
    assert nodes.number(ray.get_runtime_context().get_node_id()) == 0
    assert nodes.at(0) == (0, nodes.folder / "personal_state", {})
    nodes.close()
    assert not nodes.folder.exists()


def test_folders_of_processes_that_were_killed_are_swept_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"{PREFIX}left"
    left.mkdir()
    (left / "lock").touch()
    used = tmp_path / f"{PREFIX}used"
    used.mkdir()
    lock = os.open(used / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    own = TemporaryFile()
    assert not left.exists()
    assert used.exists()
    again = TemporaryFile()
    assert own.folder.exists()
    own.close()
    again.close()
    os.close(lock)
    assert sorted(p.name for p in tmp_path.iterdir()) == [used.name]


def test_folders_that_are_made_at_once_are_not_swept_away(tmp_path, monkeypatch):
    """Runs of a study start in threads of one process, and the commands of a user in several."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def make(_):
        for _ in range(40):
            file = TemporaryFile()
            assert (file.folder / "lock").exists()
            file.path.write_text("")
            file.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make, range(8)))
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_log(tmp_path, cluster):
    (tmp_path / "log").write_text("\n".join(map(str, range(100))))
    assert tail(str(tmp_path / "log")).split() == [str(i) for i in range(80, 100)]
    assert "can't be read" in tail(str(tmp_path / "none"))
    reader = NodeReader.remote(2, None)
    assert ray.get(reader.log.remote(str(tmp_path / "log"))).endswith("99")
    ray.get(reader.close.remote())
    ray.kill(reader)
    assert LOG_LINES == 20
