"""When a run gets a checkpoint: every so many rounds, beside the rounds that follow."""

from __future__ import annotations

from collections.abc import Callable

from raysim.storage.checkpoint import Checkpoint
from raysim.storage.checkpoint_writer import CheckpointWriter
from raysim.federation.rounds import Run
from raysim.storage.folder import Folder


class Keeper:
    """Begins checkpoints and takes note of their end; see ``checkpoint_writer`` for the writing.

    Args:
        run: between its rounds.
        folder: of its checkpoints.
        name: of the run, for messages.
        facts: see ``Manifest``.
        since: the checkpoint that the run goes on from.
        say: tells the user that one could not be written.
        done: told when one is complete.
    """

    def __init__(
        self,
        run: Run,
        folder: Folder,
        name: str,
        facts: dict[str, str],
        since: Checkpoint | None,
        say: Callable[[str], None],
        done: Callable[[], None] = lambda: None,
    ) -> None:
        config = run.config
        assert config.checkpoint.every is not None
        self._run, self._every = run, config.checkpoint.every
        self._where = f"{name}: a checkpoint can't be written to {folder.uri}"
        self._say, self._done = say, done
        self._last = run.next_round
        self.writer = CheckpointWriter(
            folder,
            config.checkpoint.keep,
            config.model_dump(mode="json"),
            facts,
            run.read_states,
            config.data.num_clients,
            run.state_size,
            since,
        )

    def after_a_round(self) -> None:
        """Start a checkpoint if one is due and the one before is written; nothing is waited for."""
        self._settle(wait=False)
        due = self._run.next_round - self._last >= self._every and self._run.next_round < self._run.config.rounds
        if due and not self.writer.pending:
            self._begin()

    def at_the_end(self) -> None:
        """The last one, of the finished run; the only one that is kept."""
        self._settle(wait=True)
        self.writer.keep = 1
        for _ in range(2):  # a disk that was full may have room again
            self._begin()
            if self._settle(wait=True):
                return

    def _begin(self) -> None:
        self._run.index.hold()
        self._last = self._run.next_round
        self.writer.write(self._run.snapshot())

    def _settle(self, wait: bool) -> bool:
        """Whether a checkpoint has become complete."""
        begun = self.writer.pending
        try:
            done = self.writer.finished(wait)
        except OSError as error:
            done, self._last = False, -self._every  # again after the next round
            self._say(f"{self._where}: {error}. The one before is as it was; the run goes on and tries again")
        if begun and not self.writer.pending:
            self._run.index.release()
        if done:
            self._done()
        return done
