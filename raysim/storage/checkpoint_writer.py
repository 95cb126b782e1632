"""Writes checkpoints in a thread beside the rounds; see ``checkpoint.py`` for what it writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from raysim.storage.checkpoint import (
    FORMAT,
    OWN_FILE,
    Checkpoint,
    FileEntry,
    Manifest,
    Snapshot,
    StateFiles,
    _sha256,
    canonical,
    manifest_name,
    rounds_in,
)
from raysim.storage.folder import Folder
from raysim.storage.records import Records

Ints = NDArray[np.int64]
SEGMENT_BYTES = 64 * 2**20
MOST_RECORD_FILES = 20  # when reached, the next checkpoint writes all rounds into one new file


@dataclass
class _Table:
    """The files that have the clients' states, or what the server keeps of them.

    Attributes:
        segment, row: (N,), in which file each client's state is, or -1, and where.
        versions: (N,), which of its states that is.
        counts: how many states each file has.
    """

    entries: list[FileEntry]
    segment: Ints
    row: Ints
    versions: Ints
    counts: list[int]

    @classmethod
    def of(cls, num_clients: int, since: StateFiles | None) -> _Table:
        """That of a run that begins, or goes on from a checkpoint with these files."""
        table = cls([], np.full(num_clients, -1), np.full(num_clients, -1), np.zeros(num_clients, np.int64), [])
        if since is not None:
            table.entries = list(since.entries)
            table.segment[since.clients], table.row[since.clients] = since.segment, since.row
            table.counts = np.bincount(since.segment, minlength=len(since.entries)).tolist()
        return table

    def changed(self, addresses: Ints, versions: Ints) -> tuple[_Table, Ints]:
        """Without files that are more than half out of date; and the clients (M,) whose states are to be written."""
        has_state = addresses >= 0
        again = has_state & ((self.versions != versions) | (self.segment < 0))
        live = np.bincount(self.segment[has_state & ~again], minlength=len(self.entries))
        keep = 2 * live > np.array(self.counts, np.int64) if len(self.entries) else np.zeros(0, np.bool_)
        in_file = has_state & ~again
        again[in_file] = ~keep[self.segment[in_file]]
        new_number = np.append(np.cumsum(keep) - 1, -1)  # the last entry is for -1
        kept = [i for i, kept in enumerate(keep) if kept]
        table = _Table(
            [self.entries[i] for i in kept],
            np.where(again, -1, new_number[self.segment]),
            self.row.copy(),
            versions,
            [self.counts[i] for i in kept],
        )
        return table, np.flatnonzero(again)

    def add(self, entry: FileEntry, clients: Ints) -> None:
        """A file with the states of clients (K,)."""
        self.segment[clients], self.row[clients] = len(self.entries), np.arange(len(clients))
        self.entries.append(entry)
        self.counts.append(len(clients))

    def index(self, kind: str, addresses: Ints) -> dict[str, Ints]:
        """Where the state of each client is that has one."""
        clients = np.flatnonzero(addresses >= 0)
        return {f"{kind}.clients": clients, f"{kind}.segment": self.segment[clients], f"{kind}.row": self.row[clients]}


@dataclass
class _Durable:
    """What the last complete checkpoint already has on disk, so that only changes are written."""

    states: _Table
    rows: _Table
    rounds: list[FileEntry] = field(default_factory=list)
    clients: list[FileEntry] = field(default_factory=list)
    num_rounds: int = 0
    num_accuracy: int = 0
    closed: int = 0
    """How many files of ``clients`` are full, ..."""
    closed_accuracy: int = 0
    """... and how many rows of accuracies they have."""


class CheckpointWriter:
    """One checkpoint at a time; a run that is faster than its disk skips some.

    Args:
        folder: of the run.
        keep: checkpoints to keep.
        config, facts: see ``Manifest``.
        read: gives the states (K, size) at addresses (K,); called from the thread.
        num_clients, state_size: of the run.
        since: the checkpoint that the run goes on from; what it has is not written again.
        read_rows, row_size: the same of what the server keeps of each client, if it does.
    """

    def __init__(
        self,
        folder: Folder,
        keep: int,
        config: dict[str, Any],
        facts: dict[str, str],
        read: Callable[[Ints], NDArray[np.float32]],
        num_clients: int,
        state_size: int,
        since: Checkpoint | None = None,
        read_rows: Callable[[Ints], NDArray[np.float32]] | None = None,
        row_size: int = 0,
    ) -> None:
        self.keep = keep
        self._folder, self._config, self._facts = folder, config, facts
        self._read, self._read_rows = read, read_rows
        self._num_clients, self._state_size, self._row_size = num_clients, state_size, row_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._closing = threading.Event()
        self._kept: dict[int, set[str]] = {}
        self._durable = _Durable(
            _Table.of(num_clients, since.of_clients if since is not None else None),
            _Table.of(num_clients, since.of_server if since is not None else None),
        )
        if since is not None:
            self._continue(since)
        self._forget_after(since)

    def _continue(self, since: Checkpoint) -> None:
        manifest, durable = since.manifest, self._durable
        durable.rounds, durable.clients = list(manifest.rounds), list(manifest.clients)
        durable.num_rounds, durable.num_accuracy = len(since.records.rounds), len(since.records.accuracy)
        durable.closed, durable.closed_accuracy = len(durable.clients), durable.num_accuracy
        self._kept[manifest.round] = {entry.name for entry in manifest.files}

    def _forget_after(self, since: Checkpoint | None) -> None:
        """Delete checkpoints later than ``since``: their rounds are repeated, or they are damaged."""
        for round in rounds_in(self._folder):
            if since is None or round > since.manifest.round:
                self._folder.delete(manifest_name(round))

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was started whose end ``finished`` has not reported yet."""
        return self._pending is not None

    def write(self, snapshot: Snapshot) -> None:
        """Start writing; what the snapshot refers to must not change until ``finished`` says so."""
        assert self._pending is None
        self._pending = self._thread.submit(self._write, snapshot)

    def finished(self, wait: bool = False) -> bool:
        """Whether a checkpoint that was being written is complete; only then may another be started.

        Raises:
            OSError: it could not be written (the disk is full); the one before is as it was.
        """
        if self._pending is None or not (wait or self._pending.done()):
            return False
        pending, self._pending = self._pending, None
        pending.result()
        return True

    def close(self) -> None:
        """Give up what is being written."""
        self._closing.set()
        self._thread.shutdown(wait=True)

    # In the thread.

    def _write(self, snapshot: Snapshot) -> None:
        written: list[FileEntry] = []
        try:
            durable, manifest = self._files(snapshot, written)
            body = manifest.model_dump(mode="json")
            outer = {"sha256": _sha256(canonical(body)), "manifest": body}
            self._folder.write(manifest_name(snapshot.round), json.dumps(outer).encode())
        except BaseException:
            kept = set().union(*self._kept.values())
            with suppress(OSError):  # where nothing can be written, maybe nothing can be deleted either
                if snapshot.round not in self._kept:  # it may have been written although the answer was lost
                    self._folder.delete(manifest_name(snapshot.round))
                for entry in written:
                    if entry.name not in kept:
                        self._folder.delete(entry.name)
            raise
        self._durable = durable
        self._kept[snapshot.round] = {entry.name for entry in manifest.files}
        with suppress(OSError):  # what can't be deleted now is deleted after the next checkpoint
            self._prune()

    def _files(self, snapshot: Snapshot, written: list[FileEntry]) -> tuple[_Durable, Manifest]:
        def put(kind: str, data: bytes) -> FileEntry:
            if self._closing.is_set():
                raise OSError("the run was ended")
            sha = _sha256(data)
            suffix = "json" if kind == "rounds" else "safetensors"
            # The checksum in the name: a replayed round never overwrites what another manifest refers to.
            name = f"{kind}-{snapshot.round:06d}-{sha[:12]}.{suffix}"
            entry = FileEntry(name=name, bytes=len(data), sha256=sha)
            written.append(entry)
            self._folder.write(name, data)
            return entry

        old = self._durable
        states = self._with_states("states", old.states, snapshot.addresses, snapshot.versions, put)
        rows = self._with_states("rows", old.rows, *snapshot.rows, put) if snapshot.rows is not None else old.rows
        durable = replace(old, states=states, rows=rows, rounds=list(old.rounds), clients=list(old.clients))
        self._add_rounds(durable, snapshot.records, put)
        self._add_clients(durable, snapshot, put)
        tensors = {"shared": snapshot.shared, **states.index("index", snapshot.addresses)}
        if snapshot.rows is not None:
            tensors |= rows.index("rows", snapshot.rows[0])
        tensors |= {f"server.{name}": value for name, value in snapshot.server_state.items()}
        manifest = Manifest(
            format=FORMAT,
            round=snapshot.round,
            config=self._config,
            facts=self._facts,
            num_clients=self._num_clients,
            state_size=self._state_size,
            ends_after=snapshot.ends_after,
            open=snapshot.open,
            shared=put("shared", save_tensors({k: np.ascontiguousarray(v) for k, v in tensors.items()})),
            states=states.entries,
            row_size=self._row_size,
            rows=rows.entries,
            rounds=durable.rounds,
            clients=durable.clients,
        )
        return durable, manifest

    def _with_states(
        self, kind: str, old: _Table, addresses: Ints, versions: Ints, put: Callable[[str, bytes], FileEntry]
    ) -> _Table:
        """Write changed states, and the rest of files that are more than half out of date; those files are dropped."""
        table, changed = old.changed(addresses, versions)
        read, width = (self._read, self._state_size) if kind == "states" else (self._read_rows, self._row_size)
        size = max(1, SEGMENT_BYTES // max(1, 4 * width))
        for start in range(0, len(changed), size):
            assert read is not None
            ids = changed[start : start + size]
            table.add(put(kind, save_tensors({"clients": ids, "states": read(addresses[ids])})), ids)
        return table

    def _add_rounds(self, durable: _Durable, records: Records, put: Callable[[str, bytes], FileEntry]) -> None:
        if len(durable.rounds) >= MOST_RECORD_FILES:
            durable.rounds, durable.num_rounds = [], 0
        if new := records.rounds[durable.num_rounds :]:
            durable.rounds.append(put("rounds", json.dumps([record.as_json() for record in new]).encode()))
        durable.num_rounds = len(records.rounds)

    def _add_clients(self, durable: _Durable, snapshot: Snapshot, put: Callable[[str, bytes], FileEntry]) -> None:
        """Write new accuracies. Many small files are written again as one, up to a size at which a file is closed."""
        records = snapshot.records
        if len(durable.clients) - durable.closed >= MOST_RECORD_FILES:
            del durable.clients[durable.closed :]
            durable.num_accuracy = durable.closed_accuracy
        tensors: dict[str, NDArray[Any]] = {f"final.{name}": values for name, values in records.final.items()}
        tensors |= {f"new.{name}": values for name, values in records.new.items()}
        size, at = 0, durable.num_accuracy
        for row in records.accuracy.rows(durable.num_accuracy, snapshot.num_accuracy):
            key, at = f"{row.model}.{row.round}", at + 1
            tensors |= {f"{key}.clients": row.clients, f"{key}.accuracy": row.accuracy}
            size += row.clients.nbytes + row.accuracy.nbytes
            if size >= SEGMENT_BYTES:
                durable.clients.append(put("clients", save_tensors(tensors)))
                if len(durable.clients) == durable.closed + 1:  # all before it are closed, too
                    durable.closed, durable.closed_accuracy = len(durable.clients), at
                tensors, size = {}, 0
        if tensors:
            durable.clients.append(put("clients", save_tensors(tensors)))
        durable.num_accuracy = snapshot.num_accuracy

    def _prune(self) -> None:
        for round in sorted(self._kept)[: -self.keep]:
            self._folder.delete(manifest_name(round))
            del self._kept[round]
        needed = set().union(*self._kept.values()) | {manifest_name(round) for round in self._kept}
        for name in list(self._folder.files()):
            if OWN_FILE.fullmatch(name) and name not in needed:
                self._folder.delete(name)
