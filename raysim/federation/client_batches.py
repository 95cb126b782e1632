"""The tasks of a round: which clients train together, and which are only evaluated. A function of the cohort alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raysim import seeds
from raysim.federation.cohort import participation
from raysim.config.schema import Config
from raysim.data.partitioners import Partition
from raysim.storage.slot_file import NEVER_TRAINED, SlotIndex
from raysim.training.tasks import Task

Ints = NDArray[np.int64]


def cut(clients: Ints, sizes: Ints, clients_per_batch: int) -> list[Ints]:
    """Client batches as a function of the clients alone: sorted by size, largest first, so that padding stays small.

    ``sizes`` (K,) are numbers of samples.
    """
    order = clients[np.lexsort((clients, -sizes))]
    return [order[i : i + clients_per_batch] for i in range(0, len(order), clients_per_batch)]


class Planner:
    """Makes tasks; reads from ``index`` where the clients' states are."""

    def __init__(self, config: Config, partition: Partition, index: SlotIndex) -> None:
        assert isinstance(config.resources.clients_per_batch, int)
        self._size = config.resources.clients_per_batch
        self._config, self._partition, self._index = config, partition, index
        self._epochs = len(config.algorithm.epochs(config.train.local_epochs))

    def training(
        self, round: int, cohort: Ints, messages: dict[str, NDArray[np.float32]], evaluate: bool
    ) -> list[Task]:
        """A cohort (K,) in client batches; ``messages`` have a row per client, in id order."""
        if self._config.algorithm.pooled:
            return [self._pooled(round, cohort)]
        sizes = self._partition.num_train
        total = int(sizes[cohort].sum())
        reports, work = participation(self._config, round, cohort)
        return [
            Task(
                "train",
                i,
                round,
                ids,
                self._index.addresses[ids],
                weights={
                    "samples": reports[at] * (sizes[ids] / total),
                    "uniform": reports[at] * np.full(len(ids), 1 / len(cohort)),
                },
                reports=reports[at],
                work=work[at] if work is not None and (work[at] < 1).any() else None,
                messages={name: rows[at] for name, rows in messages.items()},
                evaluate=evaluate,
                samples=self._epochs * len(ids) * int(sizes[ids].max()),
            )
            for i, ids in enumerate(cut(cohort, sizes[cohort], self._size))
            for at in [np.searchsorted(cohort, ids)]
        ]

    def _pooled(self, round: int, cohort: Ints) -> Task:
        """As many training samples as the cohort has, drawn from those of all clients, in the name of client 0."""
        partition, one = self._partition, cohort[:1] * 0
        rng = seeds.stream(self._config.seed, "pooled", round)
        those_of_clients = int(partition.num_train[: self._config.data.num_clients].sum())  # not of new ones
        drawn = rng.choice(
            partition.all_train[:those_of_clients], int(partition.num_train[cohort].sum()), replace=False
        )
        weights = {"samples": np.ones(1), "uniform": np.ones(1)}
        state, reports = self._index.addresses[one], np.ones(1, np.bool_)
        return Task(
            *("train", 0, round, one, state),
            weights=weights,
            reports=reports,
            messages={},
            pooled=drawn,
            samples=len(drawn),
        )

    def evaluation(self, kind: Literal["evaluate", "global"], round: int, clients: Ints, first: int) -> list[Task]:
        """Clients (E,) in batches, with indices from ``first``."""
        sizes = self._partition.num_test
        return [
            Task(kind, first + i, round, ids, self._index.addresses[ids], samples=len(ids) * int(sizes[ids].max()))
            for i, ids in enumerate(cut(clients, sizes[clients], self._size))
        ]

    def newcomers(self, round: int, messages: dict[str, NDArray[np.float32]], first: int) -> list[Task]:
        """Clients that never took part, evaluated before and after they adapt; ``messages`` have a row for each of them."""
        start, sizes = self._config.data.num_clients, self._partition.num_train
        epochs = len(self._config.algorithm.epochs(self._config.evaluate.adapt_epochs))
        tasks: list[Task] = []
        for ids in cut(np.arange(start, len(sizes)), sizes[start:], self._size):
            state, ones = np.full(len(ids), NEVER_TRAINED, np.int64), np.ones(len(ids))
            rows = {name: m[ids - start] for name, m in messages.items()}
            weights = {"samples": ones, "uniform": ones}
            count = len(ids) * int(sizes[ids].max())
            tasks += [
                Task("unadapted", first + len(tasks), round, ids, state, samples=count),
                Task(
                    *("adapted", first + len(tasks) + 1, round, ids, state),
                    weights=weights,
                    messages=rows,
                    evaluate=True,
                    samples=epochs * count,
                ),
            ]
        return tasks


def padding(tasks: Sequence[Task], num_train: Ints) -> float:
    """Share of the samples that went through training only because another client of the batch has more."""
    batches = [num_train[task.clients] for task in tasks]
    return 1.0 - sum(int(b.sum()) for b in batches) / sum(len(b) * int(b.max()) for b in batches)
