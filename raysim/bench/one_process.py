"""Rounds in this process, without Ray: what the driver and the actors do, one client batch after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.functional.context import ServerContext
from raysim.functional.optimizers import Tensors
from raysim.training.aggregation import PartialSum, Weights, combine, mean_uploads
from raysim.training.engine import ClientEngine, Trained
from raysim.training.local_training import LocalTraining
from raysim.training.server_step import stepped

Ints = NDArray[np.int64]


class OneProcess:
    """A run whose rounds are called one by one.

    Args:
        initial: parameters (P,).

    Attributes:
        shared: (S,) the server's parameters.
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
        self.shared = self.engine.layout.split(initial)[0].clone()
        self.server_state = self.algorithm.server_init(self.shared, self.engine.layout)
        self.states = np.tile(self.engine.initial_state, (config.data.num_clients, 1))

    @property
    def broadcast(self) -> Tensors:
        sent = self.algorithm.broadcast(self.shared, self.server_state)
        return {name: tensor.to(self.engine.device) for name, tensor in sent.items()}

    def train(
        self,
        round: int,
        clients: Ints,
        weights: dict[str, Weights] | None = None,
        messages: Tensors | None = None,
        **options: Any,
    ) -> Trained:
        """Train clients together, with equal weights unless others are given; nothing is kept of it.

        ``options``: of ``LocalTraining``.
        """
        equal = Weights(np.ones(len(clients), np.int64), len(clients))
        epochs = options.pop("local_epochs", self.config.train.local_epochs)
        own = weights or {"samples": equal, "uniform": equal}
        training = LocalTraining(round, clients, own, epochs, messages or {}, **options)
        return self.engine.train(training, self.broadcast, self.states[clients])

    def prepare(self) -> None:
        """All clients train for the server alone, before round 0."""
        everyone = np.arange(self.config.data.num_clients)
        size = self.config.resources.clients_per_batch
        assert isinstance(size, int)
        groups = np.split(everyone, everyone[size::size])
        _, means = self._means(0, groups, prepare=True, evaluate=False)
        self.server_state = self.algorithm.server_prepare(self.server_state, means)

    def round(self, round: int, groups: Sequence[Any], **options: Any) -> list[Trained]:
        """Train client batches as one cohort, take the server step, keep the states; returns what was trained."""
        trained, means = self._means(round, groups, **options)
        if means:
            context = ServerContext(self.engine.layout, round, sum(map(len, groups)), self.config.data.num_clients)
            self.shared, self.server_state = stepped(self.algorithm, self.shared, self.server_state, means, context)
        for result in trained:
            self.states[result.clients] = result.states
        return trained

    def _means(self, round: int, groups: Sequence[Any], **options: Any) -> tuple[list[Trained], Tensors]:
        cohort = np.concatenate(groups)
        sizes, parts = self.engine.partition.num_train, PartialSum(round)
        messages: Tensors = {}
        if self.algorithm.reads_cohort_states:
            rows = self.engine.state_layout.unpack(torch.from_numpy(self.states[np.sort(cohort)]))
            sent = self.algorithm.server_messages(rows)
            messages = {name: rows.to(self.engine.device) for name, rows in sent.items()}
        trained = []
        for i, group in enumerate(map(np.array, groups)):
            total, ones = int(sizes[cohort].sum()), np.ones(len(group), np.int64)
            weights = {"samples": Weights(sizes[group], total), "uniform": Weights(ones, len(cohort))}
            own = {k: v[np.searchsorted(np.sort(cohort), group)] for k, v in messages.items()}
            trained.append(self.train(round, group, weights, own, **options))
            parts.add(i, trained[-1].sums)
        return trained, mean_uploads(self.algorithm, combine([parts], round, set(range(len(groups)))))
