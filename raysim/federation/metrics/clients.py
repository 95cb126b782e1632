"""``personalized/...``, ``global/...``, ``new_clients/...``: from each client's test samples, reduced in client-id order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysim.data.partition import Partition, ranges
from raysim.training.evaluation import Evaluation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClientResults:
    """The evaluated clients (E,) in id order, with all their test probabilities."""

    clients: Ints
    correct: Ints
    num_test: Ints
    probabilities: NDArray[np.float32]
    """(sum of num_test, classes), client after client."""

    @classmethod
    def merge(cls, parts: Sequence[Evaluation]) -> ClientResults:
        """Evaluations of client batches, in whatever order they came, to one in client-id order."""
        whole = cls(
            np.concatenate([part.clients for part in parts]),
            np.concatenate([part.correct for part in parts]),
            np.concatenate([part.num_test for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
        )
        order = np.argsort(whole.clients)
        assert (np.diff(whole.clients[order]) > 0).all(), "a client was evaluated twice"
        return whole._at(order)

    def only(self, clients: Ints) -> ClientResults:
        """The results of these clients (E,) only, in id order; clients that were dropped have none."""
        return self._at(np.flatnonzero(np.isin(self.clients, clients, assume_unique=True)))

    def _at(self, index: Ints) -> ClientResults:
        starts = np.cumsum(self.num_test) - self.num_test
        rows = ranges(starts[index], self.num_test[index])
        return ClientResults(self.clients[index], self.correct[index], self.num_test[index], self.probabilities[rows])

    @property
    def accuracy(self) -> Floats:
        """(E,), fractions."""
        return self.correct / self.num_test

    def metrics(self, labels: Ints, partition: Partition) -> dict[str, float]:
        """The round's ``personalized/...`` metrics; ``labels`` (n,) are the whole data set's."""
        accuracy = self.accuracy
        worst = np.sort(accuracy)[: max(1, len(accuracy) // 10)]
        return {
            "personalized/accuracy_mean": float(accuracy.mean()),
            "personalized/accuracy_std": float(accuracy.std()),
            "personalized/accuracy_weighted": float(self.correct.sum() / self.num_test.sum()),
            "personalized/accuracy_worst_decile": float(worst.mean()),
            "personalized/auc_micro": auc_micro(self.probabilities, labels[partition.tests(self.clients)]),
        }

    def client_auc(self, labels: Ints, partition: Partition) -> Floats:
        """(E,): micro-averaged AUC of each client's own test samples, from ranks, for all clients at once."""
        scores, num_classes = self.probabilities, self.probabilities.shape[1]
        true = labels[partition.tests(self.clients)]
        owner = np.repeat(np.arange(len(self.clients)), self.num_test)
        ranks = pd.Series(scores.ravel()).groupby(np.repeat(owner, num_classes)).rank().to_numpy()
        ranks_of_positives = ranks.reshape(scores.shape)[np.arange(len(true)), true]
        positives, negatives = self.num_test, self.num_test * (num_classes - 1)
        above = np.bincount(owner, ranks_of_positives) - positives * (positives + 1) / 2
        return above / (positives * negatives)


def global_metrics(parts: Sequence[Evaluation]) -> dict[str, float]:
    """``global/...``: the shared model on the test samples of the clients that the metrics are about."""
    merged = ClientResults.merge(parts)
    return {"global/accuracy": float(merged.correct.sum() / merged.num_test.sum())}


def new_clients_metrics(before: ClientResults, after: ClientResults) -> dict[str, float]:
    """``new_clients/...``: the accuracy of clients that never took part, before and after they adapted."""
    return {
        "new_clients/accuracy_before_mean": float(before.accuracy.mean()),
        "new_clients/accuracy_before_std": float(before.accuracy.std()),
        "new_clients/accuracy_after_mean": float(after.accuracy.mean()),
        "new_clients/accuracy_after_std": float(after.accuracy.std()),
    }


def auc_micro(probabilities: NDArray[np.float32], labels: Ints) -> float:
    """Area under the ROC curve over all (sample, class) pairs pooled, for any number of classes from two.

    ``probabilities`` (n, classes) against one-hot ``labels`` (n,). Every sample has one positive and at least one negative
    pair, so it is always defined.
    """
    from sklearn.metrics import roc_auc_score  # takes over a second to import, which the first round need not wait for

    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    return float(roc_auc_score(one_hot.ravel(), probabilities.ravel()))
