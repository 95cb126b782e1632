"""Personal state of many clients: one slot file per node, its slots copied on write.

The driver owns ``SlotIndex`` (which client has which slot of which node, which slots are free); actors read and write slots
by number through ``SlotFile``, those of other nodes through ``workers/remote_states.py``. Every attempt at a client batch
writes fresh slots, and a round is committed by switching the index: until then nothing that a retry would read has changed.
RAM holds 24 bytes per client; the file is sparse.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raysim.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
NEVER_TRAINED = -1
NODE_SHIFT = 40  # an address is the number of a node and that of a slot, in one integer


class SlotFile:
    """A file of equal slots, each one client's state; read and written by number with ``pread`` and ``pwrite``.

    ``path`` None: a temporary file without a name, of which nothing is left.
    """

    def __init__(self, path: Path | None, slot_size: int) -> None:
        self._row_bytes = 4 * slot_size
        self._slot_size = slot_size
        if path is None:
            self._temporary = tempfile.TemporaryFile(prefix="raysim-")  # noqa: SIM115 - as long as this object
            self._fd = self._temporary.fileno()
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def read(self, slots: Ints, initial: Floats, start: int = 0, size: int | None = None) -> Floats:
        """(K, slot_size): the state in each slot; ``initial`` (slot_size,) where a client has none.

        With ``size`` only so many numbers of each, from the number ``start`` on.
        """
        size = self._slot_size if size is None else size
        rows = np.empty((len(slots), size), np.float32)
        for row, slot in zip(rows, slots.tolist(), strict=True):
            if slot == NEVER_TRAINED:
                row[:] = initial
                continue
            count = os.preadv(self._fd, [row.data], slot * self._row_bytes + 4 * start)
            assert count == 4 * size, f"slot {slot} has {count} bytes there, not {4 * size}"
        return rows

    def write(self, slots: Ints, rows: Floats) -> None:
        """Write states (K, slot_size), C-contiguous, to fresh slots."""
        for row, slot in zip(rows, slots.tolist(), strict=True):
            count = os.pwritev(self._fd, [row.data], slot * self._row_bytes)
            if count != self._row_bytes:
                raise OSError(f"disk full: {count} of {self._row_bytes} bytes of a client's state were written")

    def close(self) -> None:
        os.close(self._fd)


def address(node: int, slots: Ints) -> Ints:
    """Where a state is in the whole cluster: the number of a node, and a slot of its file."""
    return (node << NODE_SHIFT) + slots


def node_of(addresses: Ints) -> Ints:
    """The node of each address."""
    return addresses >> NODE_SHIFT


def slot_of(addresses: Ints) -> Ints:
    """The slot of each address in its node's file."""
    return addresses & (2**NODE_SHIFT - 1)


@dataclass
class SlotIndex:
    """The driver's view: each client's committed address (N,), and the slots of each node that nothing refers to."""

    num_clients: int
    addresses: Ints = field(init=False)
    versions: Ints = field(init=False)
    """(N,): raised with every state that is committed, since a slot may be used again."""
    _free: dict[int, list[Ints]] = field(default_factory=dict)
    _end: dict[int, int] = field(default_factory=dict)
    _held: list[Ints] | None = None

    def __post_init__(self) -> None:
        self.addresses = np.full(self.num_clients, NEVER_TRAINED, np.int64)
        self.versions = np.zeros(self.num_clients, np.int64)

    def allocate(self, count: int, node: int = 0) -> Ints:
        """Fresh addresses (count,) on a node, reused ones first."""
        taken: list[Ints] = []
        free, end = self._free.setdefault(node, []), self._end.get(node, 0)
        while count and free:
            chunk = free.pop()
            taken.append(chunk[:count])
            if len(chunk) > count:
                free.append(chunk[count:])
            count -= len(taken[-1])
        taken.append(address(node, np.arange(end, end + count)))
        self._end[node] = end + count
        return np.concatenate(taken)

    def commit(self, clients: Ints, addresses: Ints, accepted: NDArray[np.bool_]) -> None:
        """Adopt what clients (K,) wrote, except those that were not accepted, and free the slots no longer used.

        Slots of failed attempts are never freed, since a process that may still be alive could write to them.
        """
        old = self.addresses[clients]
        self.addresses[clients] = np.where(accepted, addresses, old)
        self.versions[clients] += accepted
        unused = np.where(accepted, old, addresses)
        self._release(unused[unused != NEVER_TRAINED])

    def hold(self) -> None:
        """Reuse no slots until ``release``, since a checkpoint is being copied."""
        assert self._held is None
        self._held = []

    def release(self) -> None:
        """Reuse slots again: the copy is complete."""
        held, self._held = self._held or [], None
        for unused in held:
            self._release(unused)

    def _release(self, unused: Ints) -> None:
        if self._held is not None:
            self._held.append(unused)
            return
        nodes = node_of(unused)
        for node in np.unique(nodes).tolist():
            self._free.setdefault(node, []).append(unused[nodes == node])


def check_space(folder: Path, slot_size: int, num_slots: int, more: int = 0) -> None:
    """Refuse a run whose personal states can't fit on the disk; the file is sparse, so it would fail late otherwise.

    ``more``: bytes of other temporary files of the run, the accuracies of its clients.

    Raises:
        ConfigError: too little space is free.
    """
    needed, free = 4 * slot_size * num_slots + more, shutil.disk_usage(folder).free
    if needed > free:
        accuracies = f" (of which {more / 2**30:.1f} GiB are accuracies of clients: evaluate.every, evaluate.clients)"
        raise ConfigError(
            f"personal state: {num_slots:,} slots of {4 * slot_size:,} bytes need up to {needed / 2**30:.1f} GiB"
            f"{accuracies if more > needed / 10 else ''}, {folder} has {free / 2**30:.1f} GiB free. Set TMPDIR to a larger "
            "disk, or keep less personal"
        )
