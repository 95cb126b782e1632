"""The accuracy of every evaluated client in every evaluated round, in a file: in memory it would grow as clients x rounds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BYTES_PER_CLIENT = 12 + 4
"""Of an evaluation of a client, in the file and in the final table."""


@dataclass(frozen=True)
class AccuracyRow:
    """A model's accuracy on the clients (E,) that a round evaluated."""

    model: str
    round: int
    clients: Ints
    accuracy: Floats


@dataclass(frozen=True)
class _Place:
    model: str
    round: int
    offset: int
    count: int


class AccuracyHistory:
    """Rows in the order in which they were added. The file is temporary and has no name: nothing is left of it.

    One thread adds; others may read meanwhile.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="raysim-")  # noqa: SIM115 - as long as the history
        self._places: list[_Place] = []
        self._end = 0

    def add(self, row: AccuracyRow) -> None:
        """Add a row; ``clients`` and ``accuracy`` have equal lengths."""
        data = row.accuracy.astype(np.float64).tobytes() + row.clients.astype(np.int32).tobytes()
        written = 0
        while written < len(data):
            written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
        self._places.append(_Place(row.model, row.round, self._end, len(row.clients)))
        self._end += len(data)

    def __len__(self) -> int:
        return len(self._places)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[AccuracyRow]:
        """Rows ``start`` to ``stop``, read one by one."""
        for place in self._places[start:stop]:
            data = os.pread(self._file.fileno(), 12 * place.count, place.offset)
            accuracy = np.frombuffer(data, np.float64, place.count)
            clients = np.frombuffer(data, np.int32, place.count, 8 * place.count).astype(np.int64)
            yield AccuracyRow(place.model, place.round, clients, accuracy)

    def rounds(self, model: str) -> list[int]:
        """The rounds in which a model was evaluated, ascending."""
        return sorted(place.round for place in self._places if place.model == model)

    def table(self, model: str, num_clients: int, rounds: list[int] | None = None) -> NDArray[np.float32]:
        """(E, N): a row for each of these rounds (default: all of ``rounds``), NaN where a client was not evaluated.

        As float32 in a temporary file, so that its size is no matter of memory.
        """
        chosen = self.rounds(model) if rounds is None else rounds
        if not chosen:
            return np.empty((0, num_clients), np.float32)
        with tempfile.TemporaryFile(prefix="raysim-") as file:
            table = np.memmap(file, np.float32, "w+", shape=(len(chosen), num_clients))
        table[:] = np.nan
        at = {round: i for i, round in enumerate(chosen)}
        for i, place in enumerate(self._places):
            if place.model == model and place.round in at:
                (row,) = self.rows(i, i + 1)
                table[at[place.round], row.clients] = row.accuracy
        return table
