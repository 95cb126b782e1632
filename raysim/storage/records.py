"""The records of a run's completed rounds: metrics, clients that were left out, the accuracy of every client."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysim.storage.accuracy_history import AccuracyHistory
from raysim.views import FAMILIES

LEFT_OUT = ("rejected", "dropped", "not_evaluated")
"""The fields of a ``RoundRecord`` that list clients."""


@dataclass(frozen=True)
class RoundRecord:
    """A completed round, as MLflow gets it."""

    round: int
    time: int
    """Milliseconds since 1970, when it was complete."""
    metrics: Mapping[str, float]
    rejected: tuple[int, ...] = ()
    """Clients whose result was not finite or out of range."""
    dropped: tuple[int, ...] = ()
    """Clients that the round went on without, because their training killed every worker that ran it."""
    not_evaluated: tuple[int, ...] = ()
    """Clients that have no evaluation, as trained or after aggregation, because it killed every worker that ran it. In the
    last round of all clients, those that never took part among them; metrics count those that they are about."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


FINAL = tuple(f"{model}.{what}" for model in FAMILIES for what in ("clients", "accuracy", "auc"))
"""The keys of ``Records.final``."""


@dataclass
class Records:
    """All rounds so far, in order."""

    rounds: list[RoundRecord] = field(default_factory=list)
    accuracy: AccuracyHistory = field(default_factory=AccuracyHistory)
    """Of the clients that the metrics are about, in every evaluated round, by family of metrics."""
    final: dict[str, NDArray[Any]] = field(default_factory=dict)
    """By ``<family>.clients``, ``<family>.accuracy``, ``<family>.auc``: all clients after the last round, each (M,)."""
    new: dict[str, NDArray[Any]] = field(default_factory=dict)
    """``clients``, ``before`` and ``after`` (M,): the accuracy of clients that never took part, before and after adapting."""

    def accuracy_tables(self, clients: str, num_clients: int) -> dict[str, NDArray[Any]]:
        """What ``accuracy.npz`` has: ``rounds`` (E,) from 0, and by family the accuracy (E, N) of the clients in them.

        It is NaN where a client was not evaluated; ``clients`` says in words whom the metrics are about.
        """
        rounds = self.accuracy.rounds(FAMILIES[0])
        tables: dict[str, NDArray[Any]] = {f: self.accuracy.table(f, num_clients, rounds) for f in FAMILIES}
        return {"rounds": np.array(rounds, np.int64), "clients": np.array(clients), **tables}

    def left_out(self) -> pd.DataFrame:
        """A row for every client that was rejected or dropped in a round, or could not be evaluated."""
        rows = [(r.round, client, "rejected") for r in self.rounds for client in r.rejected]
        rows += [(r.round, client, "dropped") for r in self.rounds for client in r.dropped]
        rows += [(r.round, client, "not evaluated") for r in self.rounds for client in r.not_evaluated]
        return pd.DataFrame(sorted(rows), columns=["round", "client", "reason"])

    def history(self, entry: str, seed: int, run_id: str) -> pd.DataFrame:
        """A row per round with ``name``, ``seed``, ``run_id``, ``round`` and every metric."""
        table = pd.DataFrame([{"round": r.round, **r.metrics} for r in self.rounds])
        table.insert(0, "name", entry)
        table.insert(1, "seed", seed)
        table.insert(2, "run_id", run_id)
        return table

    def checksum(self) -> str:
        """SHA-256 of all metrics that are results."""
        results = [{"round": float(r.round), **r.metrics} for r in self.rounds]
        kept = [sorted((k, v) for k, v in row.items() if not k.startswith("system/")) for row in results]
        return hashlib.sha256(repr(kept).encode()).hexdigest()
