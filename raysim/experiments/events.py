"""The events of a run, and the interface of the listeners that react to them.

``run.py`` calls the methods of every ``RunListener`` of a run; ``listeners/`` has the listeners, a file each. A listener does
one thing. One that raises ends its run, and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raysim.experiments.launch import PlacedRun
from raysim.experiments.results import RunResult
from raysim.federation.rounds import FederatedRun
from raysim.storage.checkpoint import Checkpoint
from raysim.storage.records import RoundRecord
from raysim.storage.study_folder import RunState
from raysim.workers.dispatch import Progress
from raysim.workers.run_setup import Machine

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words."""


@dataclass(frozen=True)
class ActiveRun:
    """A run that is about to start its first round, or to continue."""

    placed: PlacedRun
    state: RunState
    """Its row of ``study.json``. The MLflow listener writes the id of the MLflow run into it."""
    machine: Machine
    checkpoint: Checkpoint | None
    """The checkpoint that the run continues from."""
    resumed: bool
    """Whether it was started before."""


class RunListener:
    """Its methods are called in the driver as one run proceeds, in the order below. Override those that you need.

    A run that lost personal states goes back to its last checkpoint: then ``rounds_end`` and ``rounds_begin`` are called
    again, and rounds that were completed before are completed once more, with equal results.
    """

    def starts_over(self, state: RunState) -> None:
        """What an earlier command left can't be used: the run starts over, as a new run in MLflow."""

    def started(self, run: ActiveRun) -> None:
        """The actors are ready, for the first time in this process."""

    def rounds_begin(self, run: FederatedRun, since: Checkpoint | None) -> None:
        """The first round, or the first one after a checkpoint, comes next."""

    def progressed(self, round: int, progress: Progress) -> None:
        """Some tasks of a round are done."""

    def completed(self, record: RoundRecord) -> None:
        """A round is complete, with all of its metrics."""

    def between_rounds(self, run: FederatedRun) -> None:
        """A round's training is committed: the state of the run can be saved now."""

    def rounds_done(self, run: FederatedRun) -> None:
        """The last round is complete."""

    def rounds_end(self) -> None:
        """No more rounds, for whatever reason."""

    def finished(self, run: FederatedRun, result: RunResult) -> None:
        """The run has its results."""

    def ended(self, status: RunStatus, error: BaseException | None = None) -> None:
        """Nothing more happens to the run; ``error`` is why it failed or was stopped."""
