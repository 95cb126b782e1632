"""``study.json``: which run is which in MLflow, and that it is finished once MLflow has all of it."""

from __future__ import annotations

from raysim.experiments.events import ActiveRun, RunListener, RunStatus
from raysim.experiments.resumption import facts_at_start
from raysim.experiments.study_json import StudyJson
from raysim.federation.rounds import FederatedRun
from raysim.storage.study_folder import RunState
from raysim.tracking.outbox import Outbox


class StudyJsonListener(RunListener):
    """Keeps a run's row of ``study.json``.

    Args:
        outbox: of the run.
    """

    def __init__(self, saved: StudyJson, row: RunState, outbox: Outbox) -> None:
        self._saved, self._row, self._outbox = saved, row, outbox

    def starts_over(self, state: RunState) -> None:
        self._saved.forget(state)

    def started(self, run: ActiveRun) -> None:
        self._row.finished = False
        self._row.facts = facts_at_start(run.placed)
        self._saved.write()

    def between_rounds(self, run: FederatedRun) -> None:
        self._saved.write_again()

    def ended(self, status: RunStatus, error: BaseException | None = None) -> None:
        if status == "FINISHED":
            self._outbox.put(self._finished)

    def _finished(self) -> None:
        """Called when MLflow has all of the run; if the study is resumed before that, the run is logged again."""
        self._row.finished = True
        self._saved.write()
