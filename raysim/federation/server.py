"""The server of a run: the shared parameters, its own state, and what it sends to clients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithms import FederatedAlgorithm
from raysim.functional.context import ServerContext
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.training.aggregation import FixedPoint


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
        self.state = algorithm.server_init(shared)
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

    def step(self, round: int, sums: Mapping[str, FixedPoint], cohort_size: int) -> Tensors:
        """Take the server step and send its result; returns the mean uploads, or nothing if no client reported."""
        uploads = self._algorithm.uploads
        means = {name: sums[name].mean(up.scale_bits) for name, up in uploads.items() if name in sums}
        arrived = {name: mean for name, mean in means.items() if mean is not None}
        if len(arrived) < len(uploads):
            return {}
        context = ServerContext(self._layout, round, cohort_size, self._num_clients)
        shared, self.state = self._algorithm.server_step(self.shared, self.state, arrived, context)
        self.shared = shared.float().clone()
        self.send()
        return arrived

    def messages(self, states: Tensors) -> dict[str, NDArray[np.float32]]:
        """A row for each client of a cohort, from the clients' states, each (K, n)."""
        return {name: m.float().numpy() for name, m in self._algorithm.server_messages(states).items()}
