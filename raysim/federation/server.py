"""The server of a run: the shared parameters, its own state, and what it sends to clients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.algorithms import FederatedAlgorithm
from raysim.errors import ClientError
from raysim.functional.context import ServerContext
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.training.aggregation import FixedPoint, mean_uploads
from raysim.training.server_step import stepped


class Server:
    """Takes the server step of each round, on the CPU.

    Args:
        shared: (S,) the initial shared parameters.
        num_clients: of the run.

    Attributes:
        shared: (S,) float32.
        state: what the algorithm's server keeps between rounds, by name.
        sent: what is sent to every client of the next round, by name.
        version: a number for ``sent``: equal versions mean equal broadcasts.
        broadcast: ``sent`` in the object store.
    """

    def __init__(
        self, algorithm: FederatedAlgorithm, layout: ParameterLayout, shared: Tensor, num_clients: int
    ) -> None:
        self._algorithm, self._layout, self._num_clients = algorithm, layout, num_clients
        self.shared = shared
        self.state = algorithm.server_init(shared, layout)
        self.version = 0

    def restore(self, shared: NDArray[np.float32], state: Mapping[str, NDArray[np.generic]]) -> None:
        """Go back to what a checkpoint has."""
        self.shared = torch.from_numpy(shared.copy())
        self.state = {name: torch.from_numpy(value.copy()) for name, value in state.items()}

    def send(self) -> None:
        """Put the broadcast into the object store: once, read in place by every actor of a node."""
        self.sent = self._algorithm.broadcast(self.shared, self.state)
        self.version += 1
        self.broadcast = ray.put({name: tensor.float().numpy() for name, tensor in self.sent.items()})

    def prepare(self, sums: Mapping[str, FixedPoint]) -> None:
        """Take what all clients sent before round 0, and send what follows from it.

        Raises:
            ClientError: nothing of what they sent could be used.
        """
        means = mean_uploads(self._algorithm, sums)
        if not means:
            raise ClientError("before the first round: no client sent anything that is finite and in range")
        self.state = self._algorithm.server_prepare(self.state, means)
        self.send()

    def step(self, round: int, sums: Mapping[str, FixedPoint], num_reported: int) -> Tensors:
        """Take the server step and send its result; returns the mean uploads, or nothing if no client reported.

        Raises:
            ClientError: the new shared parameters are not finite.
        """
        means = mean_uploads(self._algorithm, sums)
        if not means:
            return {}
        context = ServerContext(self._layout, round, num_reported, self._num_clients)
        self.shared, self.state = stepped(self._algorithm, self.shared, self.state, means, context)
        self.send()
        return means

    def messages(self, states: Tensors) -> dict[str, NDArray[np.float32]]:
        """A row for each client of a cohort, from the clients' states, each (K, n)."""
        return {name: m.float().numpy() for name, m in self._algorithm.server_messages(states).items()}
