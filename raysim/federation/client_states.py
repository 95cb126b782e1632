"""What the clients of a run keep between rounds: where each state is, as the driver sees it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.functional.optimizers import Tensors
from raysim.functional.state_layout import StateLayout
from raysim.storage.checkpoint import Checkpoint
from raysim.storage.personal_states import SlotIndex
from raysim.workers.remote_states import StateNodes

Ints = NDArray[np.int64]
ROWS_AT_A_TIME = 1024


class ClientStates:
    """The personal states of all clients of a run, as the driver sees them.

    Args:
        initial: the state of a client that never trained, by name.
        num_clients: of the run.
        nodes: where the states are, all places still free.

    Attributes:
        index: where each client's state is.
        layout: how the entries of a state lie in its row.
    """

    def __init__(self, initial: Tensors, num_clients: int, nodes: StateNodes) -> None:
        self.layout = StateLayout.of(initial)
        self.index = SlotIndex(num_clients)
        self._initial = self.layout.pack(initial).numpy()
        self._nodes = nodes

    def restore(self, checkpoint: Checkpoint) -> None:
        """Write the states that a checkpoint has to this node."""
        for clients, rows in checkpoint.states():
            addresses = self.index.allocate(len(clients))
            self._nodes.own.write(addresses, np.ascontiguousarray(rows))
            self.index.addresses[clients] = addresses

    @property
    def trained(self) -> Ints:
        """(M,): the clients that have a state of their own, ascending."""
        return np.flatnonzero(self.index.addresses >= 0)

    def read(self, addresses: Ints) -> NDArray[np.float32]:
        """The states (K, size) at addresses (K,).

        Raises:
            StatesLost: a node that had one of them is gone.
        """
        return self._nodes.own.read(addresses, self._initial)

    def named(self, addresses: Ints) -> Tensors:
        """The states of clients (K,), by name, each (K, n)."""
        return self.layout.unpack(torch.from_numpy(self.read(addresses)))

    def initial(self) -> Tensors:
        """The state of a client that never trained, by name, each (n,)."""
        return self.layout.unpack(torch.from_numpy(self._initial))

    def checksum(self) -> hashlib._Hash:
        """SHA-256 of the clients that have a state, and their states, in id order."""
        sha = hashlib.sha256()
        ids = self.trained
        for chunk in np.split(ids, range(ROWS_AT_A_TIME, len(ids), ROWS_AT_A_TIME)):
            sha.update(chunk.tobytes())
            sha.update(self.read(self.index.addresses[chunk]).tobytes())
        return sha
