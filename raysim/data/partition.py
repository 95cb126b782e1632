"""Which samples each client has: three arrays for any number of clients, no object per client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Partition:
    """Sample indices of N clients: client i has ``indices[offsets[i]:offsets[i + 1]]``, ``num_train[i]`` of them to train.

    Attributes:
        indices: (sum of samples,) int64, client after client: of each its training, validation, and test samples.
        offsets: (N + 1,) int64.
        num_train: (N,) int64.
        num_validation: (N,) int64; None, if there is no validation split.
    """

    indices: Ints
    offsets: Ints
    num_train: Ints
    num_validation: Ints | None = None

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the arrays."""
        sha = hashlib.sha256()
        validation = [] if self.num_validation is None else [self.num_validation]
        for array in (self.indices, self.offsets, self.num_train, *validation):
            sha.update(np.ascontiguousarray(array, np.int64).data)
        return sha.hexdigest()[:16]

    @property
    def num_clients(self) -> int:
        return len(self.num_train)

    @property
    def num_held_out(self) -> Ints:
        """(N,): validation and test samples together."""
        return np.diff(self.offsets) - self.num_train

    @property
    def num_test(self) -> Ints:
        """(N,)"""
        return self.num_held_out if self.num_validation is None else self.num_held_out - self.num_validation

    @property
    def all_train(self) -> Ints:
        """The training samples of all clients, client after client."""
        sizes = np.diff(self.offsets)
        position = np.arange(len(self.indices)) - np.repeat(self.offsets[:-1], sizes)
        return self.indices[position < np.repeat(self.num_train, sizes)]

    @property
    def overlaps(self) -> list[str]:
        """What makes accuracies of this partition doubtful, with counts; a split from a file may have it.

        One of raysim's own gives each sample to one client at most, once.
        """
        sizes, num_clients = np.diff(self.offsets), self.num_clients
        trained = np.zeros(int(self.indices.max()) + 1, bool)
        trained[self.all_train] = True
        everyone = np.arange(num_clients)
        found = []
        for kind, held_out in (("test", self.tests(everyone)), ("validation", self.validations(everyone))):
            if leaked := int(trained[held_out].sum()):
                found.append(f"{leaked:,} of {len(held_out):,} {kind} samples are training samples of another client")
        tested = np.zeros_like(trained)
        tested[self.tests(everyone)] = True
        if leaked := int(tested[self.validations(everyone)].sum()):
            found.append(f"{leaked:,} validation samples are test samples of another client")
        owner = np.repeat(np.arange(num_clients), sizes)
        order = np.lexsort((self.indices, owner))
        owner, index = owner[order], self.indices[order]
        again = (owner[1:] == owner[:-1]) & (index[1:] == index[:-1])
        if again.any():
            several = int((again & ~np.append(False, again[:-1])).sum())
            extra = int(again.sum())
            found.append(
                f"{several:,} samples are in one client more than once: {extra:,} of {len(index):,} are repetitions"
            )
        return found

    def train(self, client: int) -> Ints:
        start = self.offsets[client]
        return self.indices[start : start + self.num_train[client]]

    def held_out(self, client: int) -> Ints:
        """The client's validation samples, then its test samples."""
        return self.indices[self.offsets[client] + self.num_train[client] : self.offsets[client + 1]]

    def test(self, client: int) -> Ints:
        return self.indices[self.offsets[client + 1] - self.num_test[client] : self.offsets[client + 1]]

    def tests(self, clients: Ints) -> Ints:
        """The test samples of clients (E,), client after client."""
        counts = self.num_test[clients]
        return self.indices[ranges(self.offsets[clients + 1] - counts, counts)]

    def validations(self, clients: Ints) -> Ints:
        """The validation samples of clients (E,), client after client; none without such a split."""
        if self.num_validation is None:
            return np.empty(0, np.int64)
        return self.indices[ranges(self.offsets[clients] + self.num_train[clients], self.num_validation[clients])]

    def reordered(self, clients: Ints) -> Partition:
        """The same clients under new ids: client i is what ``clients[i]`` was, for a permutation (N,)."""
        sizes = np.diff(self.offsets)[clients]
        indices = self.indices[ranges(self.offsets[clients], sizes)]
        validation = None if self.num_validation is None else self.num_validation[clients]
        return Partition(indices, np.concatenate([[0], np.cumsum(sizes)]), self.num_train[clients], validation)

    def class_counts(self, labels: Ints, num_classes: int) -> Ints:
        """(N, classes): how many samples of each class a client has, in all its splits together."""
        owner = np.repeat(np.arange(self.num_clients), np.diff(self.offsets))
        flat = np.bincount(owner * num_classes + labels[self.indices], minlength=self.num_clients * num_classes)
        return flat.reshape(self.num_clients, num_classes)

    def client_domains(self, domains: Ints | None, domain_names: tuple[str, ...]) -> NDArray[np.str_]:
        """(N,): each client's domain, ``mixed`` if its samples come from several, empty if the data set has none.

        ``domains`` (n,) are those of the whole data set's samples, as indices into ``domain_names``.
        """
        if domains is None:
            return np.zeros(self.num_clients, "U1")
        domains = domains[self.indices]
        first, last = (f.reduceat(domains, self.offsets[:-1]) for f in (np.minimum, np.maximum))
        names = np.array([*domain_names, "mixed"])
        return names[np.where(first == last, first, len(names) - 1)]


def ranges(starts: Ints, counts: Ints) -> Ints:
    """``[starts[0], ..., starts[0] + counts[0] - 1, starts[1], ...]``: several ranges in one array.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    before = np.cumsum(counts) - counts
    return np.arange(int(counts.sum())) + np.repeat(starts - before, counts)
