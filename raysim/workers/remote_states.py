"""Personal states on several nodes: each has a slot file, and an actor through which the other nodes read it.

A worker reads and writes its own node's file directly, and reads other nodes' states through their readers. The
files lie in temporary folders: what must survive a node is in the checkpoints.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.errors import StatesLost
from raysim.storage.personal_states import NEVER_TRAINED, SlotFile, node_of, slot_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
PREFIX = "raysim-states-"
READ_SECONDS = 60  # without an answer from a reader, after which its node counts as lost
LOG_LINES = 20


class TemporaryFile:
    """A slot file's folder, locked as long as its process lives; unlocked folders of killed processes are deleted."""

    def __init__(self) -> None:
        _sweep()
        while (lock := self._made()) is None:
            pass
        self._lock, self.path = lock, self.folder / "personal_state"

    def _made(self) -> int | None:
        """A new folder and its lock; None if another process deleted it as abandoned before it was locked."""
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (self.folder / "lock").exists():
            return lock
        os.close(lock)
        return None

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:
            continue  # another user's, or just being made
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(lock)


@ray.remote(num_cpus=0, max_restarts=0)
class NodeReader:
    """Gives other nodes the states in this node's slot file, and the end of a worker's log."""

    def __init__(self, slot_size: int, path: str | None) -> None:
        self._own = TemporaryFile() if path is None else None
        self._path = self._own.path if self._own is not None else Path(str(path))
        self._slots = SlotFile(self._path, slot_size)

    def path(self) -> str:
        return str(self._path)

    def read(self, slots: Ints) -> Floats:
        """The states (K, slot_size) in slots (K,), all of which were written."""
        return self._slots.read(slots, np.empty(0, np.float32))

    def log(self, path: str) -> str:
        """The last lines of a worker's log on this node."""
        return tail(path)

    def close(self) -> None:
        self._slots.close()
        if self._own is not None:
            self._own.close()


class States:
    """Personal states as a process on one node sees them: its own slot file, and readers of the others'."""

    def __init__(self, node: int, path: Path, slot_size: int) -> None:
        self.node, self._slot_size = node, slot_size
        self._file = SlotFile(path, slot_size)
        self.readers: Mapping[int, Any] = {}

    def read(self, addresses: Ints, initial: Floats) -> Floats:
        """(K, slot_size): the state at each address; ``initial`` (slot_size,) where a client has none.

        Raises:
            StatesLost: the node that has one of them is gone.
        """
        nodes = node_of(addresses)  # of NEVER_TRAINED it is -1
        if ((nodes == self.node) | (nodes < 0)).all():
            return self._file.read(np.where(nodes < 0, NEVER_TRAINED, slot_of(addresses)), initial)
        rows = np.empty((len(addresses), self._slot_size), np.float32)
        answers = {}
        for node in np.unique(nodes).tolist():
            if node not in (self.node, -1):
                answers[node] = self.readers[node].read.remote(slot_of(addresses[nodes == node]))
        here = (nodes == self.node) | (nodes < 0)
        rows[here] = self._file.read(np.where(nodes < 0, NEVER_TRAINED, slot_of(addresses))[here], initial)
        for node, answer in answers.items():
            try:
                rows[nodes == node] = ray.get(answer, timeout=READ_SECONDS)
            except RayTaskError:
                raise
            except (RayError, GetTimeoutError) as error:
                raise StatesLost(f"the personal states on node {node} can't be read: {type(error).__name__}") from error
        return rows

    def write(self, addresses: Ints, rows: Floats) -> None:
        """Write states (K, slot_size), C-contiguous, to fresh addresses of this node."""
        assert (node_of(addresses) == self.node).all(), "a worker writes to its own node only"
        self._file.write(slot_of(addresses), rows)

    def close(self) -> None:
        self._file.close()


class StateNodes:
    """The driver's side: the nodes that have states, numbered in order of appearance; the driver's own is 0."""

    def __init__(self, slot_size: int) -> None:
        self._slot_size, self._temporary = slot_size, TemporaryFile()
        self._ids = [ray.get_runtime_context().get_node_id()]
        self._paths = [self._temporary.path]
        self._readers: dict[int, Any] = {}
        self.own = States(0, self._temporary.path, slot_size)

    @property
    def folder(self) -> Path:
        """Where the driver's node has its states."""
        return self._temporary.folder

    def number(self, node_id: str) -> int:
        """The number of a node; one that is new gets a file and a reader.

        Raises:
            RayError: the node is gone already.
        """
        if node_id in self._ids:
            return self._ids.index(node_id)
        if not self._readers:  # from now on another node may want to read this node's states
            self._readers[0] = self._start(self._ids[0], str(self._paths[0]))
        reader = self._start(node_id, None)
        self._paths.append(Path(ray.get(reader.path.remote(), timeout=READ_SECONDS)))
        self._ids.append(node_id)
        self._readers[len(self._ids) - 1] = reader
        self.own.readers = self._readers
        return len(self._ids) - 1

    def at(self, node: int) -> tuple[int, Path, dict[int, Any]]:
        """What a worker on a node needs: the node's number and slot file, and the readers of all nodes."""
        return node, self._paths[node], dict(self._readers)

    def log(self, node: int, path: str) -> str:
        """The end of a worker's log, or why it can't be had."""
        if node == 0:
            return tail(path)
        try:
            text: str = ray.get(self._readers[node].log.remote(path), timeout=READ_SECONDS)
        except (RayError, GetTimeoutError) as error:
            return f"(its log is on a node that does not answer: {type(error).__name__})"
        return text

    def _start(self, node_id: str, path: str | None) -> Any:
        actor_class: Any = NodeReader
        where = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return actor_class.options(scheduling_strategy=where).remote(self._slot_size, path)

    def close(self) -> None:
        for reader in self._readers.values():
            with suppress(RayError, GetTimeoutError):  # its node is gone, and its file with it
                ray.get(reader.close.remote(), timeout=5)
            ray.kill(reader)
        self.own.close()
        self._temporary.close()


def tail(path: str) -> str:
    """The last lines of a file."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError as error:
        return f"(its log can't be read: {error})"
    return "\n".join(lines[-LOG_LINES:]) or "(its log is empty)"
