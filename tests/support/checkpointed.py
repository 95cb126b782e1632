"""A run that only writes checkpoints."""

import numpy as np

from raysim.storage.accuracy_history import AccuracyRow
from raysim.storage.checkpoint import PendingRoundEntry, Snapshot
from raysim.storage.checkpoint_writer import CheckpointWriter
from raysim.storage.records import Records, RoundRecord

CLIENTS, SIZE = 10, 3


class CheckpointedRun:
    """A run whose clients' states are [client, version, 0]."""

    def __init__(self, folder, keep=2, since=None):
        self.versions = np.zeros(CLIENTS, np.int64)
        self.addresses = np.full(CLIENTS, -1, np.int64)
        self.records, self.round, self.reads = Records(), 0, []
        self.writer = CheckpointWriter(folder, keep, {"seed": 1}, {"data": "d"}, self.read, CLIENTS, SIZE, since)

    def read(self, addresses):
        self.reads.append(len(addresses))
        return np.array([[a // 1000, a % 1000, 0] for a in addresses], np.float32)

    def play(self, *trained):
        """A round in which clients get new states."""
        for client in trained:
            self.versions[client] += 1
            self.addresses[client] = 1000 * client + self.versions[client]
        metrics = {"train/loss": 0.1 + self.round, "nan": float("nan")}
        self.records.rounds.append(RoundRecord(self.round, 1000 + self.round, metrics, (self.round,), ()))
        for model in ("personalized", "aggregated"):
            accuracy = np.array([0.5, 1 / 3]) + self.round
            self.records.accuracy.add(AccuracyRow(model, self.round, np.array([1, 2]), accuracy))
        self.round += 1

    def write(self, wait=True):
        records = Records(list(self.records.rounds), self.records.accuracy, dict(self.records.final))
        shared = np.arange(4, dtype=np.float32) + self.round
        state = {"control": np.full(2, self.round / 7)}
        metrics = {"a": 1 / 3, "nan": float("nan"), "inf": float("inf")}
        left = PendingRoundEntry(round=self.round, metrics=metrics, rejected=[1], dropped=[], not_evaluated=[2])
        self.writer.write(
            Snapshot(
                self.round,
                shared,
                state,
                records,
                left,
                self.addresses.copy(),
                self.versions.copy(),
                len(records.accuracy),
            )
        )
        return self.writer.finished(wait)

    def check(self, checkpoint):
        assert checkpoint.manifest.round == self.round
        assert checkpoint.shared.tolist() == [self.round + i for i in range(4)]
        assert checkpoint.server_state["control"].tolist() == [self.round / 7] * 2
        assert checkpoint.records.rounds[0].metrics["train/loss"] == 0.1
        assert [r.round for r in checkpoint.records.rounds] == list(range(self.round))
        assert [r.time for r in checkpoint.records.rounds] == [1000 + i for i in range(self.round)]
        history = checkpoint.records.accuracy
        assert history.rounds("personalized") == history.rounds("aggregated") == list(range(self.round))
        assert {row.round: row.accuracy.tolist() for row in history.rows()} == {
            r: [0.5 + r, 1 / 3 + r] for r in range(self.round)
        }
        assert str(checkpoint.manifest.open.metrics) == str({"a": 1 / 3, "nan": np.nan, "inf": np.inf})
        found = {}
        for clients, rows in checkpoint.states():
            found |= {int(c): row.tolist() for c, row in zip(clients, rows, strict=True)}
        assert found == {c: [c, self.versions[c], 0] for c in np.flatnonzero(self.addresses >= 0)}
