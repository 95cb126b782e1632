"""``personalized/``, ``aggregated/``, ``validation/``, ``global/``, ``new_clients/``: of clients, by id."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.data.partition import ranges
from raysim.errors import ConfigError
from raysim.training.evaluation import Evaluation
from raysim.views import FAMILIES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class ClientResults:
    """The evaluated clients (E,) in id order, with the probabilities of all samples that they were evaluated on."""

    clients: Ints
    correct: Ints
    num_samples: Ints
    probabilities: NDArray[np.float32]
    """(sum of num_samples, classes), client after client."""
    validation: ClientResults | None = None
    """The same on their validation samples, where these are on their test samples and there is such a split."""
    domains: NDArray[np.str_] | None = None
    """(E,): as in the table of clients, empty texts without domains; only for metrics of a user's own."""

    @classmethod
    def merge(cls, parts: Sequence[Evaluation | ClientResults]) -> ClientResults:
        """Evaluations of client batches, in whatever order they came, to one in client-id order."""
        validations = [part.validation for part in parts if part.validation is not None]
        whole = cls(
            np.concatenate([part.clients for part in parts]),
            np.concatenate([part.correct for part in parts]),
            np.concatenate([part.num_samples for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
        )
        order = np.argsort(whole.clients)
        assert (np.diff(whole.clients[order]) > 0).all(), "a client was evaluated twice"
        return replace(whole._at(order), validation=cls.merge(validations) if validations else None)

    def only(self, clients: Ints) -> ClientResults:
        """The results of these clients (E,) only, in id order; clients that were dropped have none."""
        these = self._at(np.flatnonzero(np.isin(self.clients, clients, assume_unique=True)))
        return these if self.validation is None else replace(these, validation=self.validation.only(clients))

    def _at(self, index: Ints) -> ClientResults:
        starts = np.cumsum(self.num_samples) - self.num_samples
        rows = ranges(starts[index], self.num_samples[index])
        return ClientResults(
            self.clients[index], self.correct[index], self.num_samples[index], self.probabilities[rows]
        )

    @property
    def accuracy(self) -> Floats:
        """(E,), fractions."""
        return self.correct / self.num_samples

    def metrics(self, family: str, labels: Ints, missing: int = 0) -> dict[str, float]:
        """The round's metrics of a family, ``personalized/...``, ``aggregated/...`` or ``validation/...``.

        Args:
            labels: of the samples, as ``probabilities``.
            missing: how many clients should have been evaluated, too, and were not.
        """
        accuracy, auc = self.accuracy, self.client_auc(labels)
        worst = np.sort(accuracy)[: max(1, len(accuracy) // 10)]
        metrics = {
            "accuracy_mean": float(accuracy.mean()),
            "accuracy_std": float(accuracy.std()),
            "accuracy_weighted": float(self.correct.sum() / self.num_samples.sum()),
            "accuracy_worst_decile": float(worst.mean()),
            "auc_mean": float(auc.mean()),
            "auc_weighted": float((auc * self.num_samples).sum() / self.num_samples.sum()),
            "auc_micro": auc_micro(self.probabilities, labels),
            "not_evaluated": float(missing),
        }
        return {f"{family}/{name}": value for name, value in metrics.items()}

    def own_metrics(
        self, family: str, functions: Mapping[str, Callable[..., Any]], labels: Ints, known: Container[str]
    ) -> dict[str, float]:
        """What a user's own functions make of these results, as ``<family>/<name>``.

        Args:
            functions: by what ``evaluate.metrics`` calls them.
            labels: of the samples, as ``probabilities``.
            known: metrics that there are already.

        Raises:
            ConfigError: one returns something else than numbers by name, or a name that is taken.
        """
        metrics: dict[str, float] = {}
        for called, function in functions.items():
            found = function(self, labels)
            if not isinstance(found, Mapping):
                raise ConfigError(f"evaluate.metrics: {called} returned a {type(found).__name__}, not numbers by name")
            for name, value in found.items():
                key = f"{family}/{name}"
                if not isinstance(name, str) or not NAME.fullmatch(name):
                    raise ConfigError(
                        f"evaluate.metrics: {called} returned the name {name!r}: letters, digits, _ and - only"
                    )
                if key in metrics or key in known:
                    raise ConfigError(f"evaluate.metrics: {called} returned {name!r}, which there is already")
                try:
                    metrics[key] = float(value)
                except (TypeError, ValueError) as error:
                    raise ConfigError(
                        f"evaluate.metrics: {called} returned {value!r} for {name!r}, no number"
                    ) from error
        return metrics

    def client_auc(self, labels: Ints) -> Floats:
        """(E,): micro-averaged AUC of each client's own samples, which have these labels."""
        return grouped_auc(self.probabilities, labels, self.num_samples)


_NONE = np.empty(0, np.int64)
NOBODY = ClientResults(_NONE, _NONE, _NONE, np.empty((0, 2), np.float32))
"""The results of a round whose evaluations were all lost."""


def difference_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """``difference/...``: what ``personalized/...`` has more than ``aggregated/...``, if both are about the same clients."""
    names = ("accuracy_mean", "accuracy_weighted", "auc_mean")
    if any(metrics.get(f"{family}/not_evaluated") for family in FAMILIES):
        return {}
    personalized, aggregated = ([metrics.get(f"{family}/{name}") for name in names] for family in FAMILIES)
    pairs = zip(names, personalized, aggregated, strict=True)
    return {f"difference/{name}": a - b for name, a, b in pairs if a is not None and b is not None}


def global_metrics(results: ClientResults) -> dict[str, float]:
    """``global/...``: the shared model on the test samples of the clients that the metrics are about."""
    return {"global/accuracy": float(results.correct.sum() / results.num_samples.sum())}


def new_clients_metrics(before: ClientResults, after: ClientResults) -> dict[str, float]:
    """``new_clients/...``: the accuracy of clients that never took part, before and after they adapted; none of nobody."""
    if not len(before.clients):
        return {}
    return {
        "new_clients/accuracy_before_mean": float(before.accuracy.mean()),
        "new_clients/accuracy_before_std": float(before.accuracy.std()),
        "new_clients/accuracy_after_mean": float(after.accuracy.mean()),
        "new_clients/accuracy_after_std": float(after.accuracy.std()),
    }


def auc_micro(probabilities: NDArray[np.float32], labels: Ints) -> float:
    """Area under the ROC curve over all (sample, class) pairs pooled; see ``grouped_auc``."""
    return float(grouped_auc(probabilities, labels, np.array([len(labels)]))[0])


def grouped_auc(probabilities: NDArray[np.float32], labels: Ints, sizes: Ints) -> Floats:
    """Micro-averaged area under the ROC curve of each group of samples, for all groups at once.

    In a group all (sample, class) pairs are pooled, and the area follows from the ranks of the pairs with the true class
    (Mann-Whitney U), ties counted half. A sample has one such pair and at least one other, so it is always defined.

    Args:
        probabilities: (n, classes), non-negative, group after group; two classes or more.
        labels: (n,)
        sizes: (G,) numbers of samples; they add up to n.

    Returns:
        (G,)
    """
    num_classes, owner = probabilities.shape[1], np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    # The bits of floats that are not negative are in the order of the floats: one sort of integers ranks every group.
    bits = (probabilities.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    keys = (owner[:, None] << np.uint64(32)) | bits
    true, ordered = keys[np.arange(len(labels)), labels], np.sort(keys, axis=None)
    first = np.repeat((np.cumsum(sizes) - sizes) * num_classes, sizes)
    ranks = (np.searchsorted(ordered, true, "left") + np.searchsorted(ordered, true, "right") + 1) / 2 - first
    above = np.bincount(owner.astype(np.int64), ranks, len(sizes)) - sizes * (sizes + 1) / 2
    return above / (sizes * sizes * (num_classes - 1))
