"""The rounds of a run on their way to MLflow, each logged once, also across interruptions.

Rounds are written to a file, too, with the time at which they were complete: when the run is resumed, those that MLflow does
not have yet are sent from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from raysim.storage.records import LEFT_OUT, RoundRecord
from raysim.tracking.mlflow_store import MLflowStore
from raysim.tracking.outbox import Outbox


class RunJournal:
    """The rounds of one run on their way to MLflow, each sent once.

    Args:
        file: a file on a local disk that the rounds are written to; None: they are not written down.
        resumed: whether the run was logged to before.
        before: rounds that a checkpoint has.
        notify: shows the user a message: the file can't be written.
    """

    def __init__(
        self,
        store: MLflowStore,
        outbox: Outbox,
        run_id: str,
        file: Path | None,
        resumed: bool,
        before: Iterable[RoundRecord] = (),
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store, self._outbox, self._run_id = store, outbox, run_id
        self._logged: set[int] = set()
        known = {record.round: record for record in before}
        if file is not None and file.exists():
            if not resumed:
                file.unlink()  # of an attempt that was given up
            else:
                known |= {record.round: record for record in read_journal(file)}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._rounds: set[int] = set()
        self._file = file
        if resumed:
            outbox.put(self._look_up)
        for _, record in sorted(known.items()):
            self._enqueue(record)
        self._notify, self._unwritten = notify, False
        self._lines = [_line(record) for _, record in sorted(known.items())]
        self._write("w", "".join(self._lines))  # whole: a last line may have been cut

    def add(self, record: RoundRecord) -> None:
        """Send a round, unless it is a repeated one that was sent before or is waiting already."""
        if record.round in self._rounds:
            return
        self._lines.append(_line(record))
        if self._unwritten:
            self._write("w", "".join(self._lines))
        else:
            self._write("a", self._lines[-1])
        self._enqueue(record)

    def _write(self, mode: Literal["a", "w"], text: str) -> None:
        """Write to the file. A full disk does not stop the run: rounds are in memory, too, and lost ones are repeated."""
        if self._file is None:
            return
        try:
            with self._file.open(mode) as file:
                file.write(text)
        except OSError as error:
            if not self._unwritten:
                self._notify(f"{self._file}: can't be written: {error}; tried again after the next round")
            self._unwritten = True
        else:
            self._unwritten = False

    def _enqueue(self, record: RoundRecord) -> None:
        self._rounds.add(record.round)

        def send() -> None:
            if record.round not in self._logged:
                self._store.log_round(self._run_id, record.round, record.metrics, record.time)

        self._outbox.put(send)

    def _look_up(self) -> None:
        self._logged = self._store.rounds_logged(self._run_id)


def _line(record: RoundRecord) -> str:
    return json.dumps(record.as_json()) + "\n"


def read_journal(file: Path) -> list[RoundRecord]:
    """The rounds of a journal, up to a line that is not whole."""
    records = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            left_out = {key: tuple(row[key]) for key in LEFT_OUT}
            records.append(RoundRecord(row["round"], row["time"], row["metrics"], **left_out))
        except (ValueError, KeyError, TypeError):
            break
    return records
