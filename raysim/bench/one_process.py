"""Rounds in this process, without Ray: what the driver and the actors do, one client batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.functional.optimizers import Tensors
from raysim.training.aggregation import PartialSum, Weights, combine
from raysim.training.algorithm_server import AlgorithmServer
from raysim.training.engine import ClientEngine, Trained
from raysim.training.local_training import LocalTraining

Ints = NDArray[np.int64]


class OneProcess:
    """A run whose rounds are called one by one.

    Args:
        initial: parameters (P,).

    Attributes:
        server: that of the algorithm.
        states: (clients, size) what each client keeps.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        initial: Tensor,
        images: NDArray[np.uint8],
        labels: Ints,
        partition: Partition,
        device: str = "cpu",
    ) -> None:
        self.config, self.algorithm, self.initial = config, config.algorithm, initial
        self.engine = ClientEngine(config, model, initial, images, labels, partition, device)
        samples = partition.num_train[: config.data.num_clients]
        self.server = AlgorithmServer(config, self.engine.layout, initial, samples)
        self.states = np.tile(self.engine.initial_state, (config.data.num_clients, 1))

    @property
    def shared(self) -> Tensor:
        """(S,) the server's parameters."""
        return self.server.shared

    @property
    def broadcast(self) -> Tensors:
        return {name: tensor.to(self.engine.device) for name, tensor in self.server.sent().items()}

    def train(
        self,
        round: int,
        clients: Ints,
        weights: dict[str, Weights] | None = None,
        **options: Any,
    ) -> Trained:
        """Train clients together, with equal weights unless others are given; nothing is kept of it.

        ``options``: of ``LocalTraining``.
        """
        equal = Weights(np.ones(len(clients), np.int64), len(clients))
        epochs = options.pop("local_epochs", self.config.train.local_epochs)
        own = weights or {"samples": equal, "uniform": equal}
        messages = {name: rows.to(self.engine.device) for name, rows in self.server.messages(round, clients).items()}
        training = LocalTraining(round, clients, own, epochs, messages, **options)
        return self.engine.train(training, self.broadcast, self.states[clients])

    def prepare(self) -> None:
        """All clients train for the server alone, before round 0."""
        everyone = np.arange(self.config.data.num_clients)
        size = self.config.resources.clients_per_batch
        assert isinstance(size, int)
        groups = np.split(everyone, everyone[size::size])
        _, uploads = self._uploads(0, groups, prepare=True, evaluate=False)
        self.server.prepare(uploads)

    def round(self, round: int, groups: Sequence[Any], **options: Any) -> list[Trained]:
        """Train client batches as one cohort, take the server step, keep the states; returns what was trained."""
        trained, uploads = self._uploads(round, groups, **options)
        clients = np.concatenate([result.clients[result.accepted] for result in trained])
        self.server.step(round, uploads, np.sort(clients))
        for result in trained:
            self.states[result.clients] = result.states
        return trained

    def _uploads(self, round: int, groups: Sequence[Any], **options: Any) -> tuple[list[Trained], PartialSum]:
        cohort = np.concatenate(groups)
        sizes, parts = self.engine.partition.num_train, PartialSum(round)
        trained = []
        for i, group in enumerate(map(np.array, groups)):
            total, ones = int(sizes[cohort].sum()), np.ones(len(group), np.int64)
            weights = {"samples": Weights(sizes[group], total), "uniform": Weights(ones, len(cohort))}
            trained.append(self.train(round, group, weights, **options))
            parts.add(i, trained[-1].sums, trained[-1].uploads)
        return trained, combine([parts], round, set(range(len(groups))))
