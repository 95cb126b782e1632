"""The server of a run as its driver has it: an ``AlgorithmServer`` that sends through Ray's object store."""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray
from torch import Tensor

from raysim.config.schema import Config
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.training.aggregation import PartialSum
from raysim.training.algorithm_server import AlgorithmServer

Ints = NDArray[np.int64]


class Server(AlgorithmServer):
    """Sends what it has after each step.

    Attributes:
        version: a number for what was sent last: equal versions mean equal broadcasts.
        broadcast: that, in the object store.
        message_size: how many numbers each client of the round was sent beside it.
    """

    def __init__(self, config: Config, layout: ParameterLayout, theta: Tensor, num_samples: Ints) -> None:
        super().__init__(config, layout, theta, num_samples)
        self.version = self.message_size = 0

    def send(self) -> None:
        """Put the broadcast into the object store: once, read in place by every actor of a node."""
        sent = self.sent()
        self.version += 1
        self.broadcast_size = sum(tensor.numel() for tensor in sent.values())
        self.broadcast = ray.put({name: tensor.float().numpy() for name, tensor in sent.items()})

    def prepare(self, uploads: PartialSum) -> None:
        super().prepare(uploads)
        self.send()

    def step(self, round: int, uploads: PartialSum, clients: Ints) -> Tensors | None:
        means = super().step(round, uploads, clients)
        if means is not None:
            self.send()
        return means

    def rows_for(self, round: int, clients: Ints) -> dict[str, NDArray[np.float32]]:
        """The messages to clients (K,), rows (K, m)."""
        rows = {name: m.numpy() for name, m in self.messages(round, clients).items()}
        self.message_size = sum(m.shape[1] for m in rows.values())
        return rows
