"""Progress: what the command shows while a run is under way."""

from __future__ import annotations

from raysim.experiments.events import RunListener
from raysim.experiments.status import RoundProgress, StatusBoard
from raysim.storage.records import RoundRecord
from raysim.workers.dispatch import Progress


class ProgressListener(RunListener):
    """Puts the progress of the run of an index on the board that the command polls."""

    def __init__(self, board: StatusBoard, index: int) -> None:
        self._board, self._index = board, index

    def progressed(self, round: int, progress: Progress) -> None:
        self._board.progress(self._index, RoundProgress(round, progress.done, progress.total, progress.running))

    def completed(self, record: RoundRecord) -> None:
        self._board.completed(self._index, record)
