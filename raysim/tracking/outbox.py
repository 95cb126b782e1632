"""Calls to MLflow, made in order by a thread, so that a slow or absent server never holds up a round.

A call that fails because the server can't be reached is made again until it works.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from raysim.errors import ConfigError, Stopped
from raysim.tracking.mlflow_store import may_pass

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts
NOTIFY_AFTER = 5.0  # seconds without the server, after which the user is told


class Outbox:
    """The queue of a study's calls to MLflow; ``for_run`` makes a view of it for each run.

    Args:
        notify: shows the user a message: the server is away, or back.
        stop: set when the runs are to end; calls that wait for an answer then stop waiting.
    """

    def __init__(self, notify: Callable[[str], None], stop: threading.Event) -> None:
        self._notify, self._stop = notify, stop
        self._calls: queue.Queue[tuple[Outbox, Callable[[], Any], Future[Any], bool]] = queue.Queue()
        self._failure: Exception | None = None
        self.name = "the run"
        self._all = [self]
        self._thread = threading.Thread(target=self._send, name="outbox", daemon=True)
        self._thread.start()

    def for_run(self, name: str) -> Outbox:
        """For a run: its calls wait in the same queue, but one that MLflow refuses fails this run only."""
        other = copy.copy(self)
        other.name, other._failure = name, None
        self._all.append(other)
        return other

    def put(self, call: Callable[[], Any], in_any_case: bool = False) -> Future[Any]:
        """Make a call when its turn comes; it must do no harm when it is made twice.

        After a refused call no other is made, unless ``in_any_case``.
        """
        future: Future[Any] = Future()
        self._calls.put((self, call, future, in_any_case))
        return future

    def ask(self, call: Callable[[], Any]) -> Any:
        """Make a call and wait for its answer, however long the server is away.

        Raises:
            Stopped: the runs are to end.
        """
        future = self.put(call)
        while True:
            try:
                return future.result(timeout=0.2)
            except FutureTimeout:
                if self._stop.is_set():
                    raise Stopped from None

    def check(self) -> None:
        """Raises the error of a call that the server refused; after such a call nothing more of this run is sent."""
        if self._failure is not None:
            raise self._failure

    @property
    def refused(self) -> bool:
        """Whether ``check`` would raise."""
        return self._failure is not None

    def refusals(self) -> dict[str, Exception]:
        """The error of each run's refused call, by the name of the run."""
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
            del call, future  # they hold the arrays of a finished run, and the next call may be hours away

    def _made(self, call: Callable[[], Any]) -> Any:
        since, pause, notified = time.monotonic(), FIRST_PAUSE, False
        while True:
            try:
                answer = call()
                if notified:
                    self._notify(f"MLflow is back after {time.monotonic() - since:.0f} seconds")
                return answer
            except Exception as error:
                if not may_pass(error):
                    raise
                if not notified and time.monotonic() - since > NOTIFY_AFTER:
                    notified = True
                    reason = " ".join(str(error).split())
                    reason = reason if len(reason) < 160 else f"{reason[:100]} … {reason[-50:]}"
                    self._notify(f"MLflow does not answer ({reason}); the run goes on, what it logs waits")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
