"""Writes checkpoints in a thread beside the rounds; see ``checkpoint.py`` for what it writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
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
class _Durable:
    """What the last complete checkpoint already has on disk, so that only changes are written."""

    states: list[FileEntry] = field(default_factory=list)
    segment: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    """(N,): in which file each client's state is, or -1."""
    row: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    versions: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    rows: list[int] = field(default_factory=list)
    """How many states each file has."""
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
    ) -> None:
        self.keep = keep
        self._folder, self._config, self._facts, self._read = folder, config, facts, read
        self._num_clients, self._state_size = num_clients, state_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._closing = threading.Event()
        self._kept: dict[int, set[str]] = {}
        none = np.full(num_clients, -1, np.int64)
        self._durable = _Durable(segment=none, row=none.copy(), versions=np.zeros(num_clients, np.int64))
        if since is not None:
            self._continue(since)
        self._forget_after(since)

    def _continue(self, since: Checkpoint) -> None:
        manifest, durable = since.manifest, self._durable
        durable.states, durable.rounds, durable.clients = (
            list(manifest.states),
            list(manifest.rounds),
            list(manifest.clients),
        )
        durable.segment[since.clients], durable.row[since.clients] = since.segment, since.row
        durable.rows = np.bincount(since.segment, minlength=len(manifest.states)).tolist()
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

        durable = self._with_states(snapshot, put)
        self._add_rounds(durable, snapshot.records, put)
        self._add_clients(durable, snapshot, put)
        clients = np.flatnonzero(snapshot.addresses >= 0)
        tensors = {"shared": snapshot.shared, "index.clients": clients}
        tensors |= {"index.segment": durable.segment[clients], "index.row": durable.row[clients]}
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
            states=durable.states,
            rounds=durable.rounds,
            clients=durable.clients,
        )
        return durable, manifest

    def _with_states(self, snapshot: Snapshot, put: Callable[[str, bytes], FileEntry]) -> _Durable:
        """Write changed states, and the rest of files that are more than half out of date; those files are dropped."""
        old = self._durable
        has_state = snapshot.addresses >= 0
        again = has_state & ((old.versions != snapshot.versions) | (old.segment < 0))
        live = np.bincount(old.segment[has_state & ~again], minlength=len(old.states))
        keep = 2 * live > np.array(old.rows, np.int64) if len(old.states) else np.zeros(0, np.bool_)
        in_file = has_state & ~again
        again[in_file] = ~keep[old.segment[in_file]]
        new_number = np.append(np.cumsum(keep) - 1, -1)  # the last entry is for -1
        segment = np.where(again, -1, new_number[old.segment])
        durable = _Durable(
            [entry for entry, kept in zip(old.states, keep, strict=True) if kept],
            segment,
            old.row.copy(),
            snapshot.versions,
            [rows for rows, kept in zip(old.rows, keep, strict=True) if kept],
            list(old.rounds),
            list(old.clients),
            old.num_rounds,
            old.num_accuracy,
            old.closed,
            old.closed_accuracy,
        )
        changed = np.flatnonzero(again)
        size = max(1, SEGMENT_BYTES // max(1, 4 * self._state_size))
        for start in range(0, len(changed), size):
            ids = changed[start : start + size]
            entry = put("states", save_tensors({"clients": ids, "states": self._read(snapshot.addresses[ids])}))
            durable.segment[ids], durable.row[ids] = len(durable.states), np.arange(len(ids))
            durable.states.append(entry)
            durable.rows.append(len(ids))
        return durable

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
