"""Who owns each sample: the ways to divide a data set among clients. Each gives (n,), the client of each sample."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysim.errors import ConfigError

Ints = NDArray[np.int64]
MAX_ATTEMPTS = 200


class Skew(NamedTuple):
    """The keys of the same names in ``data.partition``."""

    alpha: float
    min_samples: int
    cap: bool


def dirichlet(labels: Ints, num_clients: int, skew: Skew, rng: np.random.Generator, where: str) -> Ints:
    """The FedPerfix paper's label skew, class by class (first in https://arxiv.org/abs/1905.12022).

    Of every class, shares from Dirichlet(alpha) over the clients; with ``cap`` a client that already holds n / num_clients
    samples gets no more; all drawn again until every client has ``min_samples``.
    """
    min_samples = skew.min_samples
    if num_clients * min_samples > len(labels):
        raise ConfigError(
            f"data.partition.min_samples: {num_clients} clients with at least {min_samples} samples each need "
            f"{num_clients * min_samples}, there are {len(labels)}{where}; at most {len(labels) // num_clients} is possible"
        )
    best = 0
    for _ in range(MAX_ATTEMPTS):
        owner = _draw_dirichlet(labels, num_clients, skew, rng)
        least = int(np.bincount(owner, minlength=num_clients).min())
        if least >= min_samples:
            return owner
        best = max(best, least)
    raise ConfigError(
        f"data.partition: Dirichlet(alpha={skew.alpha:g}) gave no split of {len(labels)} samples{where} in which each of "
        f"{num_clients} clients has {min_samples} samples, in {MAX_ATTEMPTS} draws. "
        + _what_would_work(labels, num_clients, skew, best, rng)
    )


def _what_would_work(labels: Ints, num_clients: int, skew: Skew, best: int, rng: np.random.Generator) -> str:
    advice = [f"data.partition.min_samples={best} works at this alpha"] if best >= 2 else []
    for larger in (skew.alpha * 2**k for k in range(1, 12)):
        draws = (_draw_dirichlet(labels, num_clients, skew._replace(alpha=larger), rng) for _ in range(20))
        if any(np.bincount(owner, minlength=num_clients).min() >= skew.min_samples for owner in draws):
            advice.append(f"data.partition.alpha={larger:g} works with this min_samples")
            break
    return "; ".join(advice or ["Take fewer clients, a larger alpha or a smaller min_samples"])


def _draw_dirichlet(labels: Ints, num_clients: int, skew: Skew, rng: np.random.Generator) -> Ints:
    owner = np.empty(len(labels), np.int64)
    held = np.zeros(num_clients, np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        open_ = held < (len(labels) / num_clients if skew.cap else np.inf)
        shares = rng.dirichlet(np.full(num_clients, skew.alpha)) * open_
        # With a tiny alpha the whole draw can fall on clients that are already full.
        shares = shares / shares.sum() if shares.sum() > 0 else open_ / open_.sum()
        cuts = (np.cumsum(shares) * len(members)).astype(np.int64)
        cuts[-1] = len(members)
        counts = np.diff(cuts, prepend=0)
        owner[members] = np.repeat(np.arange(num_clients), counts)
        held += counts
    return owner


def pathological(labels: Ints, num_classes: int, num_clients: int, k: int, rng: np.random.Generator) -> Ints:
    """k classes per client, each class held by about the same number of clients and divided evenly among them.

    After McMahan et al. 2017, https://arxiv.org/abs/1602.05629, whose shards of sorted data give a client two classes.
    """
    if k > num_classes:
        raise ConfigError(f"data.partition.classes_per_client: {k} asked, the data set has {num_classes} classes")
    if num_clients * k < num_classes:
        raise ConfigError(
            f"data.partition.classes_per_client: {num_clients} clients with {k} classes each can't hold all "
            f"{num_classes} classes; at least {-(-num_classes // num_clients)} is needed"
        )
    holders: list[list[int]] = [[] for _ in range(num_classes)]
    used = np.zeros(num_classes, np.int64)
    for client in range(num_clients):
        for label in np.lexsort((rng.random(num_classes), used))[:k]:  # the least used, ties at random
            holders[label].append(client)
            used[label] += 1
    owner = np.empty(len(labels), np.int64)
    for label, clients in enumerate(holders):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2 * len(clients):
            raise ConfigError(
                f"data.num_clients: class {label} has {len(members)} samples for {len(clients)} clients; each needs two. "
                "Take fewer clients or fewer classes_per_client"
            )
        for client, part in zip(clients, np.array_split(members, len(clients)), strict=True):
            owner[part] = client
    return owner


def dirichlet_per_client(
    labels: Ints, num_classes: int, num_clients: int, alpha: float, rng: np.random.Generator
) -> Ints:
    """Label skew per client: classes from Dirichlet(alpha * prior), clients of equal size.

    After Hsu et al. 2019, https://arxiv.org/abs/1909.06335: each client draws its distribution over classes, the prior being
    that of the data set, and its samples from it without replacement; a class that is used up drops out.
    """
    left = [rng.permutation(np.flatnonzero(labels == label)).tolist() for label in range(num_classes)]
    prior = np.bincount(labels, minlength=num_classes) / len(labels)
    owner = np.empty(len(labels), np.int64)
    for client, part in enumerate(np.array_split(np.arange(len(labels)), num_clients)):
        wanted = np.zeros(num_classes)
        wanted[prior > 0] = rng.dirichlet(alpha * prior[prior > 0])
        missing = len(part)
        while missing:
            available = np.array([len(members) for members in left])
            shares = wanted * (available > 0)
            shares = shares / shares.sum() if shares.sum() > 0 else available / available.sum()
            drawn = np.minimum(rng.multinomial(missing, shares), available)
            for label in np.flatnonzero(drawn):
                owner[left[label][-drawn[label] :]] = client
                del left[label][-drawn[label] :]
            missing -= int(drawn.sum())
    return owner


def quantity(n: int, num_clients: int, alpha: float, min_samples: int, rng: np.random.Generator) -> Ints:
    """Quantity skew: sizes from Dirichlet(alpha), samples at random, so that all clients have the data set's classes.

    After Li et al. 2022, https://arxiv.org/abs/2102.02079; drawn again until every client has ``min_samples``.
    """
    if num_clients * min_samples > n:
        raise ConfigError(
            f"data.partition.min_samples: {num_clients} clients with at least {min_samples} samples each need "
            f"{num_clients * min_samples}, there are {n}; at most {n // num_clients} is possible"
        )

    def draw(alpha: float) -> Ints:
        shares = rng.dirichlet(np.full(num_clients, alpha))
        return np.diff((np.cumsum(shares) * n).astype(np.int64)[:-1], prepend=0, append=n)

    best = 0
    for _ in range(MAX_ATTEMPTS):
        counts = draw(alpha)
        if counts.min() >= min_samples:
            return rng.permutation(np.repeat(np.arange(num_clients), counts))
        best = max(best, int(counts.min()))
    works = [f"data.partition.min_samples={best} works at this alpha"] if best >= 2 else []
    for larger in (alpha * 2**k for k in range(1, 12)):
        if any(draw(larger).min() >= min_samples for _ in range(20)):
            works.append(f"data.partition.alpha={larger:g} works with this min_samples")
            break
    advice = "; ".join(works or ["Take a larger alpha or a smaller min_samples"])
    raise ConfigError(
        f"data.partition: sizes from Dirichlet(alpha={alpha:g}) left one of {num_clients} clients with fewer than "
        f"{min_samples} of {n} samples in each of {MAX_ATTEMPTS} draws. {advice}, or take fewer clients"
    )


def shards(labels: Ints, num_clients: int, per_client: int, rng: np.random.Generator) -> Ints:
    """Samples sorted by class, cut into equal shards, of which each client gets ``per_client`` at random.

    McMahan et al. 2017, https://arxiv.org/abs/1602.05629, section 3. A shard may have two classes where one ends.
    """
    count = num_clients * per_client
    if count > len(labels):
        raise ConfigError(
            f"data.partition.shards_per_client: {num_clients} clients with {per_client} shards each need {count} samples, "
            f"there are {len(labels)}"
        )
    by_class = np.lexsort((rng.random(len(labels)), labels))
    of_shard = rng.permutation(np.repeat(np.arange(num_clients), per_client))
    owner = np.empty(len(labels), np.int64)
    for client, part in zip(of_shard, np.array_split(by_class, count), strict=True):
        owner[part] = client
    return owner


def natural(domains: Ints, num_clients: int, min_samples: int, rng: np.random.Generator) -> Ints:
    """Every domain is a client (a writer, a hospital); of more domains than clients, some at random; other samples: -1."""
    sizes = np.bincount(domains)
    large = np.flatnonzero(sizes >= max(1, min_samples))
    if len(large) < num_clients:
        raise ConfigError(
            f"data.num_clients: {num_clients} clients, but only {len(large)} of {np.count_nonzero(sizes)} domains have "
            f"data.partition.min_samples={min_samples} samples"
        )
    client_of = np.full(len(sizes), -1, np.int64)
    client_of[np.sort(rng.choice(large, num_clients, replace=False))] = np.arange(num_clients)
    return client_of[domains]
