"""What the server keeps of each client: a row in a slot file of the driver, copied on write like personal states."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.functional.optimizers import Tensors
from raysim.functional.state_layout import StateLayout
from raysim.storage.personal_states import NEVER_TRAINED, SlotFile, SlotIndex

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
ROWS_AT_A_TIME = 1024


class ServerRows:
    """The rows of all clients. Memory holds 24 bytes per client; the file has no name and nothing is left of it.

    Args:
        num_clients: of the run; clients that come after them have their initial row.
        initial: the row of a client of which the server knows nothing yet, by name, each (n,).

    Attributes:
        layout: how the entries lie in a row.
        index: where each client's row is.
    """

    def __init__(self, num_clients: int, initial: Callable[[int], Tensors]) -> None:
        self.layout = StateLayout.of(initial(0))
        self.index = SlotIndex(num_clients)
        self._num_clients, self._initial = num_clients, initial
        self._file = SlotFile(None, self.layout.size) if self.layout.size else None

    def named(self, clients: Ints, names: Sequence[str] = ()) -> Tensors:
        """The rows of clients (K,), by name, each (K, n): all of them, or only the entries ``names``."""
        if self._file is None:
            return {}
        addresses = self._addresses(clients)
        if names:
            parts = {name: self._part(addresses, name) for name in names}
            for i in np.flatnonzero(addresses == NEVER_TRAINED).tolist():
                initial = self._initial(int(clients[i]))
                for name in names:
                    parts[name][i] = initial[name].numpy()
            return {name: torch.from_numpy(rows) for name, rows in parts.items()}
        rows = self.read(addresses)
        for i in np.flatnonzero(addresses == NEVER_TRAINED).tolist():
            rows[i] = self.layout.pack(self._initial(int(clients[i]))).numpy()
        return self.layout.unpack(torch.from_numpy(rows))

    def known(self, clients: Ints) -> NDArray[np.bool_]:
        """(K,): which clients have a row that was written."""
        known: NDArray[np.bool_] = self._addresses(clients) != NEVER_TRAINED
        return known

    def _addresses(self, clients: Ints) -> Ints:
        of_the_run = clients < self._num_clients
        addresses = np.full(len(clients), NEVER_TRAINED)
        addresses[of_the_run] = self.index.addresses[clients[of_the_run]]
        return addresses

    def _part(self, addresses: Ints, name: str) -> Floats:
        assert self._file is not None
        at = self.layout.names.index(name)
        size, start = self.layout.sizes[at], sum(self.layout.sizes[:at])
        return self._file.read(addresses, np.zeros(size, np.float32), start, size)

    def read(self, addresses: Ints) -> Floats:
        """The rows (K, size) at addresses (K,); zeros where there is none."""
        if self._file is None:
            return np.empty((len(addresses), 0), np.float32)
        return self._file.read(addresses, np.zeros(self.layout.size, np.float32))

    def write(self, clients: Ints, rows: Tensors) -> None:
        """The next rows of clients (K,), each (K, n)."""
        if self._file is not None and len(clients):
            addresses = self._put(np.ascontiguousarray(self.layout.pack(rows).numpy()))
            self.index.commit(clients, addresses, np.ones(len(clients), np.bool_))

    def restore(self, states: Iterable[tuple[Ints, Floats]]) -> None:
        """Take the rows (K, size) of clients (K,) from a checkpoint, piece by piece."""
        for clients, rows in states:
            self.index.addresses[clients] = self._put(np.ascontiguousarray(rows))

    def _put(self, rows: Floats) -> Ints:
        assert self._file is not None
        addresses = self.index.allocate(len(rows))
        self._file.write(addresses, rows)
        return addresses

    def add_to(self, checksum: hashlib._Hash) -> None:
        """Add the clients that have a row, and their rows, in the order of their ids."""
        ids = np.flatnonzero(self.index.addresses >= 0)
        for chunk in np.split(ids, range(ROWS_AT_A_TIME, len(ids), ROWS_AT_A_TIME)):
            checksum.update(chunk.tobytes())
            checksum.update(self.read(self.index.addresses[chunk]).tobytes())
