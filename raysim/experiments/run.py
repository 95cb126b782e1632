"""One run of a study: the loop over its rounds, from its start or its last checkpoint to its end.

Whatever happens, recovery is the same: go back to the last checkpoint and repeat the rounds since then. They give the
same bits, so nothing but time is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Concatenate, ParamSpec

from raysim.errors import StatesLost, Stopped
from raysim.experiments.events import ActiveRun, RunListener
from raysim.experiments.launch import PlacedRun
from raysim.experiments.results import RunResult
from raysim.experiments.resumption import (
    as_checkpointed,
    changed_environment,
    changed_sources,
    facts,
    newest_checkpoint,
)
from raysim.federation.rounds import FederatedRun
from raysim.storage.checkpoint import Checkpoint
from raysim.storage.folder import Folder
from raysim.storage.records import RoundRecord
from raysim.storage.study_folder import RunState
from raysim.workers.actor_pool import ActorPool
from raysim.workers.dispatch import Progress
from raysim.workers.remote_states import StateNodes
from raysim.workers.run_setup import Machine

P = ParamSpec("P")


class Run:
    """Takes a run to its end, and tells its listeners.

    Args:
        state: its row of ``study.json``.
        folder: of its checkpoints; None if there are none.
        resumed: whether it may have been started before.
        notify: shows the user a message.
    """

    def __init__(
        self,
        placed: PlacedRun,
        state: RunState,
        pool: ActorPool,
        folder: Folder | None,
        resumed: bool,
        listeners: Sequence[RunListener],
        notify: Callable[[str], None],
    ) -> None:
        self._placed, self._state, self._pool, self._folder = placed, state, pool, folder
        self._resumed, self._listeners, self._notify = resumed, listeners, notify
        self._is_open = False

    def execute(self) -> RunResult:
        """All rounds that are left.

        Raises:
            ConfigError: something has changed that would change its results, or MLflow refuses what it logs.
            ClientError: an algorithm raised, or clients kill their actors.
            Stopped: the run was asked to stop.
        """
        try:
            result = None
            while result is None:
                try:
                    result = self._from_last_checkpoint()
                except StatesLost as error:
                    self._notify(f"{self._state.name}: {error}; back to the last checkpoint")
        except BaseException as error:
            self._tell(RunListener.ended, "KILLED" if isinstance(error, Stopped) else "FAILED", error)
            raise
        self._tell(RunListener.ended, "FINISHED")
        return result

    def _tell(self, event: Callable[Concatenate[RunListener, P], None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a method of ``RunListener`` on every listener."""
        for listener in self._listeners:
            getattr(listener, event.__name__)(*args, **kwargs)

    def _from_last_checkpoint(self) -> RunResult:
        checkpoint = None
        if self._folder is not None:
            checkpoint = newest_checkpoint(self._folder, self._state.name, self._notify)
        if checkpoint is not None:
            asked, ends = self._placed.config.rounds, checkpoint.manifest.ends_early(self._placed.config.rounds)
            until = (
                f", to end after round {checkpoint.manifest.ends_after} of {asked} as a callback asked" if ends else ""
            )
            self._notify(f"{self._state.name}: goes on after round {checkpoint.manifest.round}{until}")
            self._placed = as_checkpointed(self._placed, checkpoint)
        elif self._state.facts and not self._is_open:
            self._again_from_the_start(self._state.facts)
        nodes = StateNodes(self._placed.state_size)
        try:
            machine = self._pool.configure(self._placed.setup, nodes)
            self._open(machine, checkpoint)
            placed = self._placed
            run = FederatedRun(placed.setup, placed.layout, self._pool, nodes, checkpoint, placed.domains)
            self._rounds(run, checkpoint)
            result = RunResult.of(self._placed, self._state, run.records, run.shared.numpy())
            self._tell(RunListener.finished, run, result)
            return result
        finally:
            nodes.close()

    def _again_from_the_start(self, began: Mapping[str, str]) -> None:
        """Repeat rounds that MLflow has but no checkpoint: with the same bits, or else as another run in MLflow."""
        self._placed = self._placed.with_batches_of(int(began["clients_per_batch"]))
        if changed := changed_sources(self._placed, began):
            self._notify(
                f"{self._state.name}: {' and '.join(changed)} changed, and there is no checkpoint yet: the run "
                "starts over, as another run in MLflow"
            )
            self._tell(RunListener.starts_over, self._state)

    def _open(self, machine: Machine, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            for line in changed_environment(checkpoint.manifest.facts, facts(self._placed, machine)):
                self._notify(f"{self._state.name}: {line}")
        if not self._is_open:
            resumed = self._resumed or checkpoint is not None
            self._tell(RunListener.started, ActiveRun(self._placed, self._state, machine, checkpoint, resumed))
            self._is_open = True

    def _rounds(self, run: FederatedRun, since: Checkpoint | None) -> None:
        self._tell(RunListener.rounds_begin, run, since)
        try:
            while run.next_round < run.rounds:
                self._follow(run.next_round, run.round())
                self._tell(RunListener.between_rounds, run)
            self._follow(run.next_round - 1, run.finish())
            self._state.checksums = run.checksums()
            self._tell(RunListener.rounds_done, run)
        finally:
            self._tell(RunListener.rounds_end)

    def _follow(self, round: int, events: Iterable[Progress | RoundRecord]) -> None:
        """Tell the listeners what a round yields."""
        for event in events:
            if isinstance(event, RoundRecord):
                self._tell(RunListener.completed, event)
            else:
                self._tell(RunListener.progressed, round, event)
