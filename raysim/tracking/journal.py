"""What a run says to MLflow, sent by a thread, so that a slow or absent server never holds up a round.

Calls are made in order; one that fails because the server is not reachable is made again until it works. Rounds are also
written to a file, with the time at which they were complete: whoever goes on with the run sends those that are missing.
"""

from __future__ import annotations

import copy
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, Literal

from raysim.errors import ConfigError
from raysim.storage.records import RoundRecord
from raysim.tracking.mlflow_store import Tracker, may_pass

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts
SAY_AFTER = 5.0  # seconds without the server


class Outbox:
    """Calls to MLflow on their way, about one run or study; ``beside`` makes one for another.

    Args:
        say: tells the user that the server is away, and that it is back.
        stop: set when the run is to end; whoever waits then gives up.
    """

    def __init__(self, say: Callable[[str], None], stop: threading.Event) -> None:
        self._say, self._stop = say, stop
        self._calls: queue.Queue[tuple[Outbox, Callable[[], Any], Future[Any], bool]] = queue.Queue()
        self._failure: Exception | None = None
        self.name = "the run"
        self._all = [self]
        self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
        self._thread.start()

    def beside(self, name: str) -> Outbox:
        """For another run: its calls stand in the same queue, but what MLflow refuses of them is its own affair."""
        other = copy.copy(self)
        other.name, other._failure = name, None
        self._all.append(other)
        return other

    def put(self, call: Callable[[], Any], in_any_case: bool = False) -> Future[Any]:
        """Make a call when its turn comes; it must do no harm when it is made twice.

        After one that was refused others are not made, unless ``in_any_case``.
        """
        future: Future[Any] = Future()
        self._calls.put((self, call, future, in_any_case))
        return future

    def ask(self, call: Callable[[], Any], stopped: Callable[[], Exception]) -> Any:
        """Make a call and wait for its answer, however long the server is away; raises ``stopped()`` if asked to stop."""
        future = self.put(call)
        while True:
            try:
                return future.result(timeout=0.2)
            except FutureTimeout:
                if self._stop.is_set():
                    raise stopped() from None

    def check(self) -> None:
        """Raises the error of a call that the server refused, after which nothing more is sent of this run."""
        if self._failure is not None:
            raise self._failure

    @property
    def refused(self) -> bool:
        """Whether ``check`` would raise."""
        return self._failure is not None

    def refusals(self) -> dict[str, Exception]:
        """Of all runs, by name, what was refused."""
        return {outbox.name: outbox._failure for outbox in self._all if outbox._failure is not None}

    def check_all(self) -> None:
        """``check`` of all runs."""
        for outbox in self._all:
            outbox.check()

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is sent; False if it is not after so many seconds."""
        future = self.put(lambda: None)
        try:
            future.result(timeout=seconds)
        except FutureTimeout:
            return False
        self.check()
        return True

    def _send(self) -> None:
        while True:
            of, call, future, in_any_case = self._calls.get()
            before = of._failure
            if before is None or in_any_case:
                try:
                    future.set_result(self._made(call))
                except Exception as error:
                    of._failure = before or ConfigError(f"tracking.uri: MLflow refuses what {of.name} logs: {error}")
            if of._failure is not None and not future.done():
                future.set_exception(of._failure)
            del call, future  # and the arrays of a finished run, while nothing comes after them

    def _made(self, call: Callable[[], Any]) -> Any:
        since, pause, told = time.monotonic(), FIRST_PAUSE, False
        while True:
            try:
                answer = call()
                if told:
                    self._say(f"MLflow is back after {time.monotonic() - since:.0f} seconds")
                return answer
            except Exception as error:
                if not may_pass(error):
                    raise
                if not told and time.monotonic() - since > SAY_AFTER:
                    told = True
                    reason = " ".join(str(error).split())
                    reason = reason if len(reason) < 160 else f"{reason[:100]} … {reason[-50:]}"
                    self._say(f"MLflow does not answer ({reason}); the run goes on, what it logs waits")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


class RunJournal:
    """The rounds of one run on their way to MLflow, each sent once.

    Args:
        file: where they are written down, on a local disk; None if nothing is.
        resumed: whether the run was logged to before.
        before: rounds that a checkpoint has.
        say: tells the user that the file can't be written.
    """

    def __init__(
        self,
        tracker: Tracker,
        outbox: Outbox,
        run_id: str,
        file: Path | None,
        resumed: bool,
        before: Iterable[RoundRecord] = (),
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._tracker, self._outbox, self._run_id = tracker, outbox, run_id
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
        self._say, self._unwritten = say, False
        self._lines = [_line(record) for _, record in sorted(known.items())]
        self._write("w", "".join(self._lines))  # whole: a last line may have been cut

    def add(self, record: RoundRecord) -> None:
        """Send a round; one that is played again has been sent, or waits already."""
        if record.round in self._rounds:
            return
        self._lines.append(_line(record))
        if self._unwritten:
            self._write("w", "".join(self._lines))
        else:
            self._write("a", self._lines[-1])
        self._enqueue(record)

    def _write(self, mode: Literal["a", "w"], text: str) -> None:
        """A full disk does not stop the run: what is not in the file is in memory, and a lost round is played again."""
        if self._file is None:
            return
        try:
            with self._file.open(mode) as file:
                file.write(text)
        except OSError as error:
            if not self._unwritten:
                self._say(f"{self._file}: can't be written: {error}; tried again after the next round")
            self._unwritten = True
        else:
            self._unwritten = False

    def _enqueue(self, record: RoundRecord) -> None:
        self._rounds.add(record.round)

        def send() -> None:
            if record.round not in self._logged:
                self._tracker.log_round(self._run_id, record.round, record.metrics, record.time)

        self._outbox.put(send)

    def _look_up(self) -> None:
        self._logged = self._tracker.rounds_logged(self._run_id)


def _line(record: RoundRecord) -> str:
    return json.dumps(record.as_json()) + "\n"


def read_journal(file: Path) -> list[RoundRecord]:
    """The rounds of a journal, up to a line that is not whole."""
    records = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
            left_out = {key: tuple(row[key]) for key in ("rejected", "dropped")}
            records.append(RoundRecord(row["round"], row["time"], row["metrics"], **left_out))
        except (ValueError, KeyError, TypeError):
            break
    return records
