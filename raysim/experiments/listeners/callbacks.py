"""Callbacks: tells those of the user what happens to a run, and ends the run early if one asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysim.errors import Stopped
from raysim.experiments.callbacks.callback import Callback, CallbackError, LiveRun
from raysim.experiments.events import ActiveRun, RunListener, RunStatus
from raysim.experiments.results import RunResult
from raysim.experiments.study_log import StudyLog
from raysim.federation.rounds import FederatedRun
from raysim.storage.checkpoint import Checkpoint
from raysim.storage.records import RoundRecord
from raysim.tracking.outbox import Outbox
from raysim.tracking.tags import ENDED_EARLY_TAG


class CallbackListener(RunListener):
    """Tells every callback of a run each of its rounds once, in order, also when the run goes back to a checkpoint.

    Args:
        callbacks: each with its name.
        outbox: of the run.
        notify: shows the user a message: a callback ends the run, or has failed when the run had ended.
        home: see ``LiveRun``.
    """

    def __init__(
        self,
        callbacks: Sequence[tuple[str, Callback]],
        log: StudyLog,
        outbox: Outbox,
        notify: Callable[[str], None],
        home: Path,
    ) -> None:
        self._untold: list[tuple[str, Callback]] = []  # of the end: those that were told of the start
        self._callbacks, self._log, self._outbox = callbacks, log, outbox
        self._notify, self._home = notify, home
        self._live: LiveRun | None = None
        self._run: FederatedRun | None = None
        self._asked_by = ""

    def started(self, run: ActiveRun) -> None:
        self._live = LiveRun(run, self._log, self._outbox, self._home)
        for name, callback in self._callbacks:
            self._call(name, callback.started)
            self._untold.append((name, callback))

    def rounds_begin(self, run: FederatedRun, since: Checkpoint | None) -> None:
        self._run = run
        for record in since.records.rounds if since is not None else ():
            self.completed(record)
        self._end_early()

    def completed(self, record: RoundRecord) -> None:
        assert self._live is not None
        if record.round < len(self._live.history):
            return  # since a checkpoint, repeated with equal results
        told = self._live.add(record)
        for name, callback in self._callbacks:
            self._call(name, callback.round_completed, told)
        self._end_early()

    def checkpoint_written(self, rounds: int) -> None:
        """``CheckpointListener`` has written one."""
        for name, callback in self._callbacks:
            self._call(name, callback.checkpoint_written, rounds)
        self._end_early()

    def finished(self, run: FederatedRun, result: RunResult) -> None:
        self._ended("FINISHED", result, None)  # now, since the run has failed if one raises

    def ended(self, status: RunStatus, error: BaseException | None = None) -> None:
        while self._untold and self._live is not None:
            try:
                self._ended(status, None, error)
            except CallbackError as failed:  # the run has failed already, and the user is told why
                self._notify(f"{self._live.name}: {failed}")

    def _ended(self, status: RunStatus, result: RunResult | None, error: BaseException | None) -> None:
        while self._untold:
            name, callback = self._untold.pop(0)
            self._call(name, callback.ended, status, result, error)

    def _call(self, name: str, method: Callable[..., None], *args: Any) -> None:
        live = self._live
        assert live is not None
        before = live.stopped
        try:
            method(live, *args)
        except Stopped:
            raise
        except BaseException as error:  # also what would end this thread
            raise CallbackError.of(name, f"in {method.__name__}", error) from error
        if before is None and live.stopped is not None:
            self._asked_by = name

    def _end_early(self) -> None:
        live, run = self._live, self._run
        if live is None or run is None or live.stopped is None:
            return
        before = run.rounds
        run.end_after(live.stopped[0])
        if run.rounds < before:
            text = f"{self._asked_by}: {live.stopped[1]}" if live.stopped[1] else self._asked_by
            self._notify(f"{live.name}: ends after round {run.rounds} of {live.config.rounds}: {text}")
            tags = {ENDED_EARLY_TAG: f"after round {run.rounds}: {text}"}
            self._outbox.put(lambda: self._log.store.set_tags(live.run_id, tags))
