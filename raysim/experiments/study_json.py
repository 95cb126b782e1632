"""``study.json`` while the runs of a study are under way: what a later command continues from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from raysim.errors import ClientError, ConfigError
from raysim.storage.folder import Folder
from raysim.storage.study_folder import RunState, StudyFolder, StudyState

MOST_STARTS = 10  # starts of the driver without a checkpoint in between, after which the study fails


class StudyJson:
    """The state of a study and its file; without a folder nothing is written.

    Args:
        state: as the command has it.
        folder: of the study's checkpoints, or None.
        home: where journals of runs with a remote folder are kept.
        notify: shows the user a message: the file can't be written.

    Attributes:
        state: of the study and its runs.
        resumed: whether it was started before.
    """

    def __init__(self, state: StudyState, folder: str | None, home: Path, notify: Callable[[str], None]) -> None:
        self.state, self.resumed = state, False
        self._folder = StudyFolder(folder) if folder is not None else None
        self._home, self._notify = home, notify
        self._writing, self._unwritten = threading.Lock(), False

    @property
    def uri(self) -> str | None:
        """The URI of the folder."""
        return self._folder.uri if self._folder is not None else None

    def folder_of(self, row: RunState) -> Folder | None:
        """Where the checkpoints of a run are."""
        return self._folder.of(row) if self._folder is not None else None

    def journal_of(self, row: RunState) -> Path | None:
        """The file of a run's journal."""
        return self._folder.journal(row, self._home) if self._folder is not None else None

    def open(self, restarted: bool) -> None:
        """Lock the folder and read what an earlier command left in it, if there is anything.

        Args:
            restarted: whether Ray started the driver again after it was killed.

        Raises:
            ClientError: the driver was killed before anything was written, or too often without reaching a checkpoint.
            ConfigError: the file is damaged, or another process works on these runs.
        """
        if self._folder is None:
            return
        if self._folder.read() is None:
            if restarted:
                raise ClientError("the driver died while it prepared the runs: was the machine out of memory?")
            return
        self._folder.lock()
        found = self._folder.read()  # again: the process that had the lock may have written
        assert found is not None
        self.state, self.resumed = found, True
        self.state.finished = False
        self.state.starts += 1
        if self.state.starts > MOST_STARTS:
            raise ClientError(
                f"{self._folder.uri}: the driver was started {MOST_STARTS} times without reaching a checkpoint; see Ray's "
                "logs for what kills it, then continue with `raysim resume`"
            )
        self.write()

    def create(self) -> None:
        """Write the file for a new study once its configuration is checked: from now on it can be resumed.

        Raises:
            ConfigError: the folder can't be written.
        """
        if self._folder is None or self.resumed:
            return
        try:
            self._folder.lock()
            self._folder.write(self.state)
        except OSError as error:
            raise ConfigError(f"checkpoint.dir: {self._folder.uri}: {error}") from error

    def write(self) -> None:
        """Write the state; on a full disk the user is told, and ``write_again`` tries again."""
        if self._folder is None:
            return
        try:
            with self._writing:
                self._folder.write(self.state)
            self._unwritten = False
        except OSError as error:
            if not self._unwritten:
                self._notify(
                    f"{self._folder.uri}/study.json: can't be written: {error}; tried again after the next round"
                )
            self._unwritten = True

    def write_again(self) -> None:
        """Write what a full disk had no room for."""
        if self._unwritten:
            self.write()

    def checkpoint_written(self) -> None:
        """Count the driver's starts from 1 again, since a checkpoint was reached."""
        if self.state.starts > 1:
            self.state.starts = 1
            self.write()

    def forget(self, row: RunState) -> None:
        """Delete a run's checkpoints and journal: it starts over, as another run in MLflow."""
        if (folder := self.folder_of(row)) is not None:
            folder.clear()
        if (journal := self.journal_of(row)) is not None:
            journal.unlink(missing_ok=True)
        row.run_id, row.facts = None, {}
        self.write()

    def close(self) -> None:
        """Let other processes work on the folder."""
        if self._folder is not None:
            self._folder.unlock()
