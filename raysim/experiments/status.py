"""How far the runs of a command are: kept by the driver, polled by the command."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from raysim.storage.records import RoundRecord

RunPhase = Literal["waiting", "running", "finished", "failed"]
DriverState = Literal["starting", "running", "finished", "failed", "killed"]


class RoundCompleted(NamedTuple):
    """A round of a run is complete."""

    run: int
    record: RoundRecord


class RoundProgress(NamedTuple):
    """How far a run is with a round, and what the actors are working on."""

    round: int
    tasks_done: int
    tasks: int
    running: tuple[str, ...]


@dataclass(frozen=True)
class Status:
    """What the command sees when it polls."""

    state: DriverState = "starting"
    life: str = ""
    """An id that changes when the driver is restarted."""
    phases: tuple[RunPhase, ...] = ()
    """The phase of every run."""
    progress: dict[int, RoundProgress] = field(default_factory=dict)
    """The progress of the runs that are under way, by their index."""
    events: tuple[RoundCompleted | str, ...] = ()
    """Since the caller last asked: rounds that are complete, and messages for the user."""
    error: str | None = None
    problems: tuple[str, ...] | None = None
    """If the configuration, the data or the resources are at fault: each problem."""
    by_clients: bool = False
    """Whether all failed runs of a study failed by what their algorithm or clients did."""


class StatusBoard:
    """The status, written by the threads of the runs and read by the actor's methods."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._status = Status(life=uuid.uuid4().hex)
        self._events: list[RoundCompleted | str] = []

    def since(self, life: str, seen: int) -> Status:
        """The status, with the events from the ``seen``-th of this ``life`` on."""
        status = self._status
        return replace(status, events=tuple(self._events[seen if life == status.life else 0 :]))

    def notify(self, message: str) -> None:
        """Show the user a message."""
        self._events.append(message)

    def enter(self, run: int, phase: RunPhase) -> None:
        """The run of an index enters a phase."""
        with self._lock:
            phases = (*self._status.phases[:run], phase, *self._status.phases[run + 1 :])
            ended = {run} if phase in ("finished", "failed") else set()
            progress = {i: p for i, p in self._status.progress.items() if i not in ended}
            self._status = replace(self._status, phases=phases, progress=progress)

    def progress(self, run: int, progress: RoundProgress) -> None:
        """Set the progress of a run, given by its index."""
        with self._lock:
            self._status = replace(self._status, state="running", progress={**self._status.progress, run: progress})

    def completed(self, run: int, record: RoundRecord) -> None:
        """A round of the run of an index is complete."""
        self._events.append(RoundCompleted(run, record))

    def update(self, **changes: Any) -> None:
        """Change fields of the status."""
        with self._lock:
            self._status = replace(self._status, **changes)
