"""Checkpoints of a run: written while its rounds go on, and verified file by file before they are used.

A run's folder holds, all of it safetensors or JSON:

    checkpoint-000010.json      the manifest, written last: names, sizes and SHA-256 of the files that make it up
    shared-000010-….safetensors shared parameters, the server's state, and where each client's state is
    states-000010-….safetensors states of the clients that changed since the checkpoint before
    rows-000010-….safetensors   and what the server keeps of each client, likewise
    rounds-000009-….json        metrics of the rounds since the checkpoint before
    clients-000009-….safetensors and the accuracy of each client in them, by family of metrics

A file is never changed: a later checkpoint refers to those of earlier ones, and what no manifest refers to is deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from raysim.errors import CheckpointError
from raysim.storage.accuracy_history import AccuracyRow
from raysim.storage.folder import Folder
from raysim.storage.records import FINAL, LEFT_OUT, Records, RoundRecord
from raysim.views import FAMILIES

Ints = NDArray[np.int64]
FORMAT = 3
ROW = re.compile(rf"({'|'.join(FAMILIES)})\.\d{{1,12}}")
MANIFEST = re.compile(r"checkpoint-(\d{6,})\.json")
OWN_FILE = re.compile(r"(checkpoint|shared|states|rows|rounds|clients)-\d{6,}[-\w]*\.(json|safetensors)(\.part)?")


class FileEntry(BaseModel):
    """A file that a checkpoint is made of."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str = Field(pattern=f"^{OWN_FILE.pattern}$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class PendingRoundEntry(BaseModel):
    """The last round, if some clients must still be evaluated with the parameters that it ended with."""

    model_config = ConfigDict(strict=True, extra="forbid")
    round: int = Field(ge=0)
    metrics: dict[str, float]
    rejected: list[int]
    dropped: list[int]
    not_evaluated: list[int]


class Manifest(BaseModel):
    """What ``checkpoint-….json`` says."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: int
    round: int = Field(ge=0)
    """The next round."""
    config: dict[str, Any]
    """The run's configuration, with every ``auto`` resolved."""
    facts: dict[str, str]
    """What results depend on besides the configuration: digests of data, parameters and code; versions; kind of device."""
    num_clients: int = Field(ge=1)
    state_size: int = Field(ge=0)
    ends_after: int | None = Field(None, ge=1)
    """Rounds after which the run ends, if that is before ``rounds`` of its configuration."""
    open: PendingRoundEntry | None
    shared: FileEntry
    states: list[FileEntry]
    row_size: int = Field(0, ge=0)
    rows: list[FileEntry] = []
    rounds: list[FileEntry]
    clients: list[FileEntry]

    def is_last_of(self, rounds: int) -> bool:
        """Whether a run that is configured with so many rounds has no round after it."""
        return self.round == (self.ends_after if self.ends_early(rounds) else rounds)

    def ends_early(self, rounds: int) -> bool:
        """Whether a run ends early that is configured with so many rounds; not if they are more than before."""
        return self.ends_after is not None and rounds <= int(self.config["rounds"])

    @property
    def files(self) -> list[FileEntry]:
        return [self.shared, *self.states, *self.rows, *self.rounds, *self.clients]


@dataclass(frozen=True)
class Snapshot:
    """A run between two rounds, as the checkpoint keeps it; nothing in it changes any more but ``records.accuracy``.

    To that rows are added; those of the snapshot are the first ``num_accuracy``.
    """

    round: int
    shared: NDArray[np.float32]
    server_state: dict[str, NDArray[Any]]
    records: Records
    open: PendingRoundEntry | None
    addresses: Ints
    """(N,): where the state of each client is, or -1."""
    versions: Ints
    """(N,): raised with every new state of a client."""
    num_accuracy: int = 0
    ends_after: int | None = None
    """Rounds after which the run ends, if that is before ``rounds`` of its configuration."""
    rows: tuple[Ints, Ints] | None = None
    """The same addresses (N,) and versions (N,) of what the server keeps of each client."""


@dataclass(frozen=True)
class StateFiles:
    """States of clients, or what the server keeps of them, in several files.

    Attributes:
        size: of each state.
        clients: (M,), those that have one, ascending.
        segment: (M,), the file of each one's state, as an index into ``entries``.
        row: (M,), its row there.
    """

    folder: Folder
    entries: list[FileEntry]
    size: int
    clients: Ints
    segment: Ints
    row: Ints

    def read(self) -> Iterator[tuple[Ints, NDArray[np.float32]]]:
        """Clients (K,) and their states (K, size), file by file."""
        for i, entry in enumerate(self.entries):
            chosen = self.segment == i
            if not chosen.any():
                continue
            tensors = _tensors(self.folder, entry, {"clients": np.int64, "states": np.float32})
            rows = self.row[chosen]
            _check(tensors["states"].ndim == 2, entry.name, "its states are no table")
            _check(tensors["states"].shape[1] == self.size, entry.name, "its states have another size")
            _check(bool(((rows >= 0) & (rows < len(tensors["states"]))).all()), entry.name, "it has too few states")
            owners = tensors["clients"]
            one_each = owners.shape == (len(tensors["states"]),)
            _check(one_each, entry.name, "it does not have one client for each state")
            _check(bool((owners[rows] == self.clients[chosen]).all()), entry.name, "its states are of other clients")
            yield self.clients[chosen], tensors["states"][rows]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been verified; client states are read from it piece by piece."""

    folder: Folder
    manifest: Manifest
    shared: NDArray[np.float32]
    server_state: dict[str, NDArray[Any]]
    records: Records
    of_clients: StateFiles
    of_server: StateFiles

    @property
    def name(self) -> str:
        return manifest_name(self.manifest.round)

    def states(self) -> Iterator[tuple[Ints, NDArray[np.float32]]]:
        """Clients (K,) and their states (K, state_size), file by file."""
        return self.of_clients.read()

    def rows(self) -> Iterator[tuple[Ints, NDArray[np.float32]]]:
        """Clients (K,) and what the server keeps of them (K, row_size), file by file."""
        return self.of_server.read()


def manifest_name(round: int) -> str:
    return f"checkpoint-{round:06d}.json"


def rounds_in(folder: Folder) -> list[int]:
    """The rounds that a folder has checkpoints of, ascending; they are not checked."""
    return sorted(int(match[1]) for name in folder.files() if (match := MANIFEST.fullmatch(name)))


def newest(folder: Folder) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest intact checkpoint, if there is one, and what is wrong with those that are newer."""
    problems: list[CheckpointError] = []
    for round in reversed(rounds_in(folder)):
        try:
            return load(folder, round), problems
        except CheckpointError as error:
            problems.append(error)
    return None, problems


def load(folder: Folder, round: int) -> Checkpoint:
    """Read a checkpoint and verify every file of it.

    Raises:
        CheckpointError: a file is missing, damaged or foreign; names it.
    """
    manifest = _manifest(folder, round)
    tensors = _tensors(folder, manifest.shared, {"shared": np.float32})
    state = {key.removeprefix("server."): value for key, value in tensors.items() if key.startswith("server.")}
    files = (
        _state_files(folder, manifest, tensors, "index", manifest.states, manifest.state_size),
        _state_files(folder, manifest, tensors, "rows", manifest.rows, manifest.row_size),
    )
    checkpoint = Checkpoint(folder, manifest, tensors["shared"], state, _records(folder, manifest), *files)
    for file in files:
        for _ in file.read():
            pass  # read again when they are used: all of them may be larger than memory
    return checkpoint


def _state_files(
    folder: Folder, manifest: Manifest, tensors: dict[str, NDArray[Any]], kind: str, entries: list[FileEntry], size: int
) -> StateFiles:
    """The states that ``<kind>.clients``, ``.segment`` and ``.row`` are about, which are checked."""
    name = manifest.shared.name
    missing = np.empty(0, np.float64 if entries else np.int64)
    index = {key: tensors.get(f"{kind}.{key}", missing) for key in ("clients", "segment", "row")}
    for key, array in index.items():
        _check(array.dtype == np.int64 and array.ndim == 1, name, f"{kind}.{key} is not a list of integers")
        _check(len(array) == len(index["clients"]), name, f"{kind}.{key} has another length than {kind}.clients")
    ids = index["clients"]
    _check(bool((np.diff(ids) > 0).all()), name, f"{kind}.clients is not ascending")
    in_range = not len(ids) or (ids[0] >= 0 and ids[-1] < manifest.num_clients)
    _check(in_range, name, f"{kind}.clients has unknown clients")
    in_range = bool(((index["segment"] >= 0) & (index["segment"] < len(entries))).all())
    _check(in_range, name, f"{kind}.segment names unknown files")
    return StateFiles(folder, entries, size, **index)


def _manifest(folder: Folder, round: int) -> Manifest:
    name = manifest_name(round)
    try:
        outer = json.loads(_read(folder, name))
        _check(isinstance(outer, dict) and outer.keys() == {"sha256", "manifest"}, name, "it is not a raysim manifest")
        _check(outer["sha256"] == _sha256(canonical(outer["manifest"])), name, "it is damaged: its checksum differs")
        body = outer["manifest"]
        known = isinstance(body, dict) and body.get("format") == FORMAT
        _check(known, name, f"it has another format than {FORMAT}, the one that this raysim reads")
        manifest = Manifest.model_validate(body)
    except (ValueError, RecursionError) as error:  # of JSON, of its encoding, of pydantic
        if isinstance(error, CheckpointError):
            raise
        what = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else str(error)
        raise CheckpointError(name, f"it is damaged or foreign: {what}") from error
    _check(manifest.round == round, name, f"it is of round {manifest.round}")
    return manifest


def _records(folder: Folder, manifest: Manifest) -> Records:
    records = Records()
    for entry in manifest.rounds:
        try:
            for row in json.loads(_verified(folder, entry)):
                left_out = {key: tuple(int(c) for c in row[key]) for key in LEFT_OUT}
                metrics = {str(k): float(v) for k, v in row["metrics"].items()}
                records.rounds.append(RoundRecord(int(row["round"]), int(row["time"]), metrics, **left_out))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(entry.name, f"it is no list of rounds: {error!r}") from error
    for entry in manifest.clients:
        rows: list[AccuracyRow] = []
        tensors = _tensors(folder, entry, {})
        for key, values in tensors.items():
            kind, _, what = key.rpartition(".")
            ids = tensors.get(f"{kind}.clients", np.empty(0))
            _check(ids.dtype == np.int64 and ids.shape == values.shape, entry.name, f"{key} is not of its clients")
            last = np.iinfo(np.int64).max if kind == "new" else manifest.num_clients  # of new clients any id
            in_range = ids.ndim == 1 and bool(((ids >= 0) & (ids < last)).all())
            _check(in_range, entry.name, f"{kind}.clients has unknown clients")
            if key.startswith("final."):
                records.final[key.removeprefix("final.")] = values
            elif kind == "new":
                records.new[what] = values
            elif what == "accuracy":
                _check(bool(ROW.fullmatch(kind)), entry.name, f"{key} does not name a family and a round")
                _check(values.dtype == np.float64, entry.name, f"{key} is no accuracy")
                model, _, round = kind.partition(".")
                rows.append(AccuracyRow(model, int(round), ids, values))
        for row in sorted(rows, key=lambda row: row.round):
            records.accuracy.add(row)
        _check(records.final.keys() in (set(), set(FINAL)), entry.name, "it has half a table of clients")
        whole = records.new.keys() in (set(), {"clients", "before", "after"})
        _check(whole, entry.name, "it has half a table of new clients")
    return records


def _tensors(folder: Folder, entry: FileEntry, needed: dict[str, Any]) -> dict[str, NDArray[Any]]:
    try:
        tensors: dict[str, NDArray[Any]] = load_tensors(_verified(folder, entry))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(entry.name, f"it is no safetensors file: {error}") from error
    for key, dtype in needed.items():
        _check(key in tensors and tensors[key].dtype == dtype, entry.name, f"it has no {key} of type {dtype.__name__}")
    return tensors


def _verified(folder: Folder, entry: FileEntry) -> bytes:
    data = _read(folder, entry.name)
    _check(len(data) == entry.bytes, entry.name, f"it has {len(data):,} bytes, {entry.bytes:,} were written")
    _check(_sha256(data) == entry.sha256, entry.name, "it is damaged or another file: its checksum differs")
    return data


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError as error:
        raise CheckpointError(name, "it is missing") from error
    except OSError as error:
        raise CheckpointError(name, f"it can't be read: {error}") from error


def _check(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise CheckpointError(name, problem)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    """JSON in a canonical form: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
