"""The tasks of a round: which clients train together, and which are only evaluated. A function of the cohort alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.federation.cohort import participation
from raysim.storage.personal_states import NEVER_TRAINED, SlotIndex
from raysim.training.aggregation import Weights
from raysim.training.tasks import (
    BEFORE,
    AdaptNewClients,
    Evaluate,
    EvaluateGlobal,
    EvaluateNewClients,
    Prepare,
    Task,
    Train,
)

Ints = NDArray[np.int64]


def cut(clients: Ints, sizes: Ints, clients_per_batch: int) -> list[Ints]:
    """Client batches as a function of the clients alone: sorted by size, largest first, so that padding stays small.

    ``sizes`` (K,) are numbers of samples.
    """
    order = clients[np.lexsort((clients, -sizes))]
    return [order[i : i + clients_per_batch] for i in range(0, len(order), clients_per_batch)]


class BatchPlanner:
    """Divides clients into batches and makes their tasks; reads from ``index`` where the clients' states are.

    Methods take ``first``, the index of their first task, since all tasks of a round are numbered consecutively.
    """

    def __init__(self, config: Config, partition: Partition, index: SlotIndex) -> None:
        assert isinstance(config.resources.clients_per_batch, int)
        self._size = config.resources.clients_per_batch
        self._config, self._partition, self._index = config, partition, index

    def train(self, round: int, cohort: Ints, evaluate: bool, sensitivity: bool) -> list[Task]:
        """A cohort (K,) in client batches."""
        if self._config.algorithm.pooled:
            return [self._train_pooled(round, cohort)]
        sizes = self._partition.num_train
        total = int(sizes[cohort].sum())
        epochs = len(self._config.algorithm.epochs(self._config.train.local_epochs))
        reports, work = participation(self._config, round, cohort)
        tasks: list[Task] = []
        for i, ids in enumerate(cut(cohort, sizes[cohort], self._size)):
            at = np.searchsorted(cohort, ids)
            task = Train(
                round=round,
                index=i,
                clients=ids,
                read=self._index.addresses[ids],
                samples=epochs * len(ids) * int(sizes[ids].max()),
                weights={
                    "samples": Weights(reports[at] * sizes[ids], total),
                    "uniform": Weights(reports[at].astype(np.int64), len(cohort)),
                },
                reports=reports[at],
                work_share=work[at] if work is not None and (work[at] < 1).any() else None,
                evaluate=evaluate,
                sensitivity=sensitivity,
            )
            tasks.append(task)
        return tasks

    def prepare(self, clients: Ints) -> list[Task]:
        """Clients (K,), all of which train before round 0, in client batches."""
        sizes = self._partition.num_train
        total, epochs = int(sizes[clients].sum()), self._config.train.local_epochs
        return [
            Prepare(
                round=BEFORE,
                index=i,
                clients=ids,
                read=self._index.addresses[ids],
                samples=epochs * len(ids) * int(sizes[ids].max()),
                weights={
                    "samples": Weights(sizes[ids], total),
                    "uniform": Weights(np.ones(len(ids), np.int64), len(clients)),
                },
                reports=np.ones(len(ids), np.bool_),
            )
            for i, ids in enumerate(cut(clients, sizes[clients], self._size))
        ]

    def _train_pooled(self, round: int, cohort: Ints) -> Task:
        """A task for client 0: as many training samples as the cohort has, drawn from those of all clients."""
        partition, client_0 = self._partition, np.zeros(1, np.int64)
        rng = seeds.stream(self._config.seed, "pooled", round)
        those_of_clients = int(partition.num_train[: self._config.data.num_clients].sum())  # not of new ones
        drawn = rng.choice(
            partition.all_train[:those_of_clients], int(partition.num_train[cohort].sum()), replace=False
        )
        return Train(
            round=round,
            index=0,
            clients=client_0,
            read=self._index.addresses[client_0],
            samples=len(drawn),
            weights={"samples": Weights(np.ones(1, np.int64), 1), "uniform": Weights(np.ones(1, np.int64), 1)},
            reports=np.ones(1, np.bool_),
            pooled=drawn,
        )

    def evaluate(self, round: int, clients: Ints, first: int = 0) -> list[Task]:
        """Clients (E,) with their own states, in batches."""
        return self._evaluation(Evaluate, round, clients, first)

    def evaluate_global(self, round: int, clients: Ints, first: int = 0) -> list[Task]:
        """The shared model on clients (E,), in batches."""
        return self._evaluation(EvaluateGlobal, round, clients, first)

    def _evaluation(
        self, kind: type[Evaluate] | type[EvaluateGlobal], round: int, clients: Ints, first: int
    ) -> list[Task]:
        sizes = self._partition.num_held_out
        return [
            kind(
                round=round,
                index=first + i,
                clients=ids,
                read=self._index.addresses[ids],
                samples=len(ids) * int(sizes[ids].max()),
            )
            for i, ids in enumerate(cut(clients, sizes[clients], self._size))
        ]

    def adapt_new_clients(self, round: int, first: int = 0) -> list[Task]:
        """Clients that never took part, evaluated before and after they adapt."""
        start, sizes = self._config.data.num_clients, self._partition.num_train
        epochs = len(self._config.algorithm.epochs(self._config.evaluate.adapt_epochs))
        tasks: list[Task] = []
        for ids in cut(np.arange(start, len(sizes)), sizes[start:], self._size):
            state = np.full(len(ids), NEVER_TRAINED, np.int64)
            samples, at = len(ids) * int(sizes[ids].max()), first + len(tasks)
            tasks += [
                EvaluateNewClients(round=round, index=at, clients=ids, read=state, samples=samples),
                AdaptNewClients(round=round, index=at + 1, clients=ids, read=state, samples=epochs * samples),
            ]
        return tasks


def padding(tasks: Sequence[Task], num_train: Ints) -> float:
    """Share of the samples that went through training only because another client of the batch has more."""
    batches = [num_train[task.clients] for task in tasks]
    return 1.0 - sum(int(b.sum()) for b in batches) / sum(len(b) * int(b.max()) for b in batches)
