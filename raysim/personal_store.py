"""Personal state of many clients: one slot file per node, its slots copied on write.

The driver owns ``SlotIndex`` (which client has which slot, which slots are free); actors read and write slots by number
through ``SlotFile``. Every attempt at a client batch writes fresh slots, and a round is committed by switching the index:
until then nothing that a retry would read has changed. RAM holds 16 bytes per client; the file is sparse.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
NEVER_TRAINED = -1


@dataclass(frozen=True)
class StateLayout:
    """The named vectors of a client's state (``FederatedAlgorithm.client_state``) in one float32 row."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> StateLayout:
        for name, vector in state.items():
            assert vector.dim() == 1, (
                f"client state {name!r} has shape {tuple(vector.shape)}; each entry must be a vector"
            )
        return cls(tuple(state), tuple(v.numel() for v in state.values()))

    @property
    def size(self) -> int:
        """Float32 numbers per client."""
        return sum(self.sizes)

    def pack(self, state: dict[str, Tensor]) -> Tensor:
        """Named (..., n) to one (..., size)."""
        assert state.keys() == set(self.names), f"client state has {set(state)}, client_state() declares {self.names}"
        return torch.cat([state[name].float() for name in self.names], dim=-1)

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """One (..., size) to named (..., n), as views."""
        return dict(zip(self.names, rows.split(self.sizes, dim=-1), strict=True))


class SlotFile:
    """A file of equal slots, each one client's state; read and written by number with ``pread`` and ``pwrite``."""

    def __init__(self, path: Path, slot_size: int) -> None:
        self._row_bytes = 4 * slot_size
        self._slot_size = slot_size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def read(self, slots: Ints, initial: Floats) -> Floats:
        """(K, slot_size): the state in each slot; ``initial`` (slot_size,) where a client has none."""
        rows = np.empty((len(slots), self._slot_size), np.float32)
        for row, slot in zip(rows, slots.tolist(), strict=True):
            if slot == NEVER_TRAINED:
                row[:] = initial
                continue
            count = os.preadv(self._fd, [row.data], slot * self._row_bytes)
            assert count == self._row_bytes, f"slot {slot} is {count} bytes long, not {self._row_bytes}"
        return rows

    def write(self, slots: Ints, rows: Floats) -> None:
        """Write states (K, slot_size), C-contiguous, to fresh slots."""
        for row, slot in zip(rows, slots.tolist(), strict=True):
            count = os.pwritev(self._fd, [row.data], slot * self._row_bytes)
            if count != self._row_bytes:
                raise OSError(f"disk full: {count} of {self._row_bytes} bytes of a client's state were written")

    def close(self) -> None:
        os.close(self._fd)


@dataclass
class SlotIndex:
    """The driver's view: each client's committed slot (N,), and the slots that nothing refers to."""

    num_clients: int
    slots: Ints = field(init=False)
    _free: list[Ints] = field(default_factory=list)
    _end: int = 0

    def __post_init__(self) -> None:
        self.slots = np.full(self.num_clients, NEVER_TRAINED, np.int64)

    def allocate(self, count: int) -> Ints:
        """Fresh slots (count,), reused ones first."""
        taken: list[Ints] = []
        while count and self._free:
            chunk = self._free.pop()
            taken.append(chunk[:count])
            if len(chunk) > count:
                self._free.append(chunk[count:])
            count -= len(taken[-1])
        taken.append(np.arange(self._end, self._end + count))
        self._end += count
        return np.concatenate(taken)

    def commit(self, clients: Ints, slots: Ints, accepted: NDArray[np.bool_]) -> None:
        """Adopt what clients (K,) wrote to slots (K,), except those that were not accepted, and free what is unused.

        Slots of attempts that failed are never handed in: a process that is not surely dead may still write to them.
        """
        old = self.slots[clients]
        self.slots[clients] = np.where(accepted, slots, old)
        unused = np.where(accepted, old, slots)
        self._free.append(unused[unused != NEVER_TRAINED])


def check_space(folder: Path, slot_size: int, num_slots: int) -> None:
    """Refuse a run whose personal states can't fit on the disk; the file is sparse, so it would fail late otherwise.

    Raises:
        ConfigError: too little space is free.
    """
    needed, free = 4 * slot_size * num_slots, shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"personal state: {num_slots:,} slots of {4 * slot_size:,} bytes need up to {needed / 2**30:.1f} GiB, "
            f"{folder} has {free / 2**30:.1f} GiB free. Set TMPDIR to a larger disk, or keep less personal"
        )
