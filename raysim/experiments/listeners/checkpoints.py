"""Checkpoints: one every ``checkpoint.every`` rounds, written while the next rounds run, and one at the end."""

from __future__ import annotations

import time
from collections.abc import Callable

from raysim.experiments.events import ActiveRun, RunListener
from raysim.experiments.resumption import facts
from raysim.federation.rounds import FederatedRun
from raysim.storage.checkpoint import Checkpoint
from raysim.storage.checkpoint_writer import CheckpointWriter
from raysim.storage.folder import Folder

END_SECONDS = 60.0  # for a full disk to have room again for the checkpoint of a finished run
PAUSE_SECONDS = 5.0


class CheckpointListener(RunListener):
    """Starts checkpoints and takes note of their end; ``storage/checkpoint_writer.py`` writes them.

    Args:
        folder: the folder of the run's checkpoints.
        name: the run's name, for messages.
        notify: tells the user when a checkpoint could not be written.
        on_written: called when a checkpoint is complete, with the number of rounds in it.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        notify: Callable[[str], None],
        on_written: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._folder, self._notify, self._on_written = folder, notify, on_written
        self._where = f"{name}: a checkpoint can't be written to {folder.uri}"
        self._facts: dict[str, str] = {}
        self._writer: CheckpointWriter | None = None
        self._last = 0  # the round before which the last checkpoint was started
        self._told: int | None = None  # the number of the error of which the user knows

    def started(self, run: ActiveRun) -> None:
        self._facts = facts(run.placed, run.machine)

    def rounds_begin(self, run: FederatedRun, since: Checkpoint | None) -> None:
        config = run.config
        self._last = run.next_round
        self._writer = CheckpointWriter(
            self._folder,
            config.checkpoint.keep,
            config.model_dump(mode="json"),
            self._facts,
            run.states.read,
            config.data.num_clients,
            run.states.layout.size,
            since,
            run.server_rows.read,
            run.server_rows.layout.size,
        )

    def between_rounds(self, run: FederatedRun) -> None:
        """Start a checkpoint if one is due and the previous one is written; never waits."""
        assert self._writer is not None
        every = run.config.checkpoint.every
        assert every is not None
        self._settle(run, wait=False)
        due = run.next_round - self._last >= every and run.next_round < run.rounds
        if due and not self._writer.pending:
            self._begin(run)

    def rounds_done(self, run: FederatedRun) -> None:
        """Write the checkpoint of the finished run, the only one that is kept."""
        assert self._writer is not None
        self._settle(run, wait=True)
        self._writer.keep = 1
        give_up = time.monotonic() + END_SECONDS
        while True:
            self._begin(run)
            if self._settle(run, wait=True):
                return
            if time.monotonic() > give_up:
                break
            time.sleep(PAUSE_SECONDS)  # a disk that was full may have room again
        self._notify(
            f"{self._where} after {END_SECONDS:g} seconds of trying: the run is complete, with all its results in MLflow, "
            "but its end is kept nowhere else: to go on from there, rounds since the last checkpoint would be trained again"
        )

    def rounds_end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _begin(self, run: FederatedRun) -> None:
        assert self._writer is not None
        run.states.index.hold()
        run.server_rows.index.hold()
        self._last = run.next_round
        self._writer.write(run.snapshot())

    def _settle(self, run: FederatedRun, wait: bool) -> bool:
        """Take note if the pending checkpoint has ended; returns whether it is complete."""
        assert self._writer is not None
        every = run.config.checkpoint.every
        assert every is not None
        started = self._writer.pending
        try:
            done = self._writer.finished(wait)
        except OSError as error:
            done, self._last = False, -every  # due again after the next round
            if self._told is None or error.errno != self._told:
                self._notify(f"{self._where}: {error}. The one before is as it was; the run goes on and tries again")
            self._told = error.errno
        if started and not self._writer.pending:
            run.states.index.release()
            run.server_rows.index.release()
        if done:
            self._told = None
            self._on_written(self._last)
        return done
