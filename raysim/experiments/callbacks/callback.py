"""``Callback``, the interface for what users want done when something happens to a run, and what it sees of the run."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from raysim.errors import ClientError
from raysim.storage.records import RoundRecord
from raysim.views import FAMILIES, VALIDATION

if TYPE_CHECKING:  # a user's module of callbacks is imported before Ray starts
    from raysim.experiments.events import ActiveRun, RunStatus
    from raysim.experiments.results import RunResult
    from raysim.experiments.study_log import StudyLog
    from raysim.tracking.outbox import Outbox

ROUNDS_AHEAD = 3  # a round's metrics are complete while the one after next trains, and one more round is the last


OURS = (
    *FAMILIES,
    VALIDATION,
    "difference",
    "global",
    "new_clients",
    "train",
    "cohort",
    "communication",
    "sensitivity",
    "system",
)
"""How the names of raysim's own metrics begin, before the slash."""


class CallbackError(ClientError):
    """A callback raised; the message has its traceback."""

    @classmethod
    def of(cls, name: str, where: str, error: BaseException) -> CallbackError:
        """What ``name`` raised, where."""
        what = "called exit(), where run.stop() ends a run," if isinstance(error, SystemExit) else f"raised {error!r}"
        trace = "".join(traceback.format_exception(error))
        return cls(f"callbacks: {name} {what} {where}\n{trace}")


class LiveRun:
    """A run as callbacks see it.

    Attributes:
        name, entry: of the run, and of its entry in the study.
        config: with nothing left ``auto``.
        run_id, experiment, tracking_uri: where it is logged in MLflow.
        home: the folder of the command, or RAYSIM_HOME, for files.
        since: how many rounds the checkpoint has that the run goes on from; 0 if it starts.
    """

    def __init__(self, run: ActiveRun, log: StudyLog, outbox: Outbox, home: Path) -> None:
        self.name, self.entry, self.config = run.state.name, run.placed.entry, run.placed.config
        self.run_id, self.tracking_uri, self.home = str(run.state.run_id), run.placed.config.tracking.uri, home
        self.experiment = log.experiment
        self.since = run.checkpoint.manifest.round if run.checkpoint is not None else 0
        self._history: list[RoundRecord] = []
        self._store, self._outbox, self._again = log.store, outbox, run.resumed
        self._in_mlflow: dict[str, set[int]] = {}
        self._stopped: tuple[int, str] | None = None

    def stop(self, reason: str = "") -> None:
        """End the run early: three rounds after the last one of ``history``, which are under way already, or before.

        It is then finished as if it had been configured with so many rounds: the last one is evaluated for every client.
        """
        if self._stopped is None:
            self._stopped = len(self._history) + ROUNDS_AHEAD, reason

    @property
    def history(self) -> tuple[RoundRecord, ...]:
        """The rounds so far, in order."""
        return tuple(self._history)

    def add(self, record: RoundRecord) -> RoundRecord:
        """A round is complete; returns it as callbacks get it, so that they can't change what raysim goes on with."""
        kept = replace(record, metrics=MappingProxyType(dict(record.metrics)))
        self._history.append(kept)
        return kept

    @property
    def stopped(self) -> tuple[int, str] | None:
        """If ``stop`` was called: after how many rounds the run ends, and the reason."""
        return self._stopped

    def log(self, metrics: Mapping[str, float], round: int) -> None:
        """Log numbers of your own to MLflow, beside those of a round; in a run that was resumed, only once.

        Raises:
            ValueError: a name begins as those of raysim's own metrics do.
        """
        values = {name: float(value) for name, value in metrics.items()}
        if taken := [name for name in values if name.partition("/")[0] in OURS and "/" in name]:
            raise ValueError(
                f"{taken[0]!r} could be a metric of raysim's own, as all of {taken[0].partition('/')[0]}/: log another name"
            )
        self._outbox.put(partial(self._send, values, round, int(time.time() * 1000)))

    def log_files(self, files: Mapping[str, bytes]) -> None:
        """Save files among the run's artifacts, by name; what has the same name there is replaced."""
        self._outbox.put(partial(self._store.log_files, self.run_id, dict(files)))

    def _send(self, metrics: Mapping[str, float], round: int, millis: int) -> None:
        """In the outbox's thread."""
        if self._again:  # an earlier process may have logged it
            for name in metrics.keys() - self._in_mlflow.keys():
                self._in_mlflow[name] = self._store.rounds_logged(self.run_id, name)
        new = {name: value for name, value in metrics.items() if round not in self._in_mlflow.get(name, ())}
        if new:
            self._store.log_round(self.run_id, round, new, millis)


class Callback:
    """Its methods are called in the driver as a run proceeds. Override those that you need; one that raises ends its run.

    Every run of a study has a copy of its own. They are called between the tasks of rounds, so that a slow one delays the
    next round. A run that is resumed tells of all its rounds again, from the first, so that what was counted is right.
    """

    def started(self, run: LiveRun) -> None:
        """The first round comes next, or the first one after a checkpoint."""

    def round_completed(self, run: LiveRun, record: RoundRecord) -> None:
        """A round has all of its ``metrics``, as MLflow gets them; ``run.history`` has it, too."""

    def checkpoint_written(self, run: LiveRun, rounds: int) -> None:
        """A checkpoint with so many rounds is complete."""

    def ended(self, run: LiveRun, status: RunStatus, result: RunResult | None, error: BaseException | None) -> None:
        """Nothing more happens to the run: it has its ``result``, or an ``error`` says why it has none."""
