"""``Study``: the runs of a command, one after another or several at a time, each with its own pool of actors."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from ray.exceptions import RayTaskError

from raysim.config.loading import config_of
from raysim.config.schema import Config
from raysim.errors import ConfigError, OutOfDeviceMemory, Stopped
from raysim.experiments.callbacks.callback import Callback
from raysim.experiments.callbacks.making import make_callbacks
from raysim.experiments.events import RunListener
from raysim.experiments.launch import KeptActors, Launch, PlacedRun
from raysim.experiments.listeners.callbacks import CallbackListener
from raysim.experiments.listeners.checkpoints import CheckpointListener
from raysim.experiments.listeners.mlflow import MLflowListener
from raysim.experiments.listeners.models import ModelListener
from raysim.experiments.listeners.pictures import PictureListener
from raysim.experiments.listeners.progress import ProgressListener
from raysim.experiments.listeners.study_json import StudyJsonListener
from raysim.experiments.preparation import data_warnings, prepare
from raysim.experiments.results import RunResult, StudyFailed, error_message
from raysim.experiments.resumption import finished_before
from raysim.experiments.run import Run
from raysim.experiments.status import StatusBoard
from raysim.experiments.study_json import StudyJson
from raysim.experiments.study_log import StudyLog
from raysim.own_code import OwnCode
from raysim.storage.study_folder import RunState, StudyState
from raysim.tracking.mlflow_store import MLflowStore, may_pass
from raysim.tracking.outbox import Outbox
from raysim.workers.actor_pool import ActorPool

CONNECT_PAUSE = 2.0  # seconds between attempts to reach the MLflow server


@dataclass(frozen=True)
class StudyRequest:
    """What a command asks of the driver: the configuration as text, so that no class of a user's own module is needed to read
    it before that module can be imported.

    Attributes:
        state: JSON of a ``StudyState``: the configuration, and where it is logged.
        folder: of checkpoints; None if there are none.
        home: where journals of runs with a remote folder are kept.
        code: where a user's own code is, and what of it was defined in a script or a notebook.
        callbacks: those that were given as objects.
    """

    state: str
    folder: str | None
    home: str
    code: OwnCode
    callbacks: tuple[Callback, ...] = ()


class Study:
    """Takes all runs of a request to their end.

    Args:
        board: shows how far they are.
        stop: set when the runs are to end; ``Stopped`` is raised then.
        keep: leave the actors running at the end, if all went well.
        kept: actors of an earlier study.

    Attributes:
        kept: the actors that are left running.
    """

    def __init__(
        self,
        request: StudyRequest,
        board: StatusBoard,
        stop: threading.Event,
        keep: bool = False,
        kept: KeptActors | None = None,
    ) -> None:
        self._code, self._board, self._stop = request.code, board, stop
        self._callbacks, self._home = request.callbacks, Path(request.home)
        state = StudyState.model_validate(json.loads(request.state))
        self._saved = StudyJson(state, request.folder, self._home, board.notify)
        self._results: dict[int, RunResult] = {}
        self._pools: list[ActorPool] = []
        self._keep, self.kept = keep, kept
        board.update(phases=("waiting",) * len(state.runs))

    @property
    def results(self) -> list[RunResult]:
        """The results of the finished runs, in the order of the runs."""
        return [self._results[i] for i in sorted(self._results)]

    @property
    def parent(self) -> str | None:
        """The id of the study's own run in MLflow."""
        return self._saved.state.parent

    def execute(self, restarted: bool = False) -> None:
        """Take all runs to their end.

        Args:
            restarted: whether a driver before this one was killed.

        Raises:
            ConfigError, ClientError: see their messages.
            StudyFailed: some runs of a study failed.
            Stopped: asked to stop; the runs are closed as KILLED.
        """
        saved, notify = self._saved, self._board.notify
        saved.open(restarted)
        state = saved.state
        config = config_of(state.config, [], "study.json" if saved.resumed else "config")
        outbox = Outbox(notify, self._stop)
        try:
            launch = Launch(config, self._code, state.tracking_uri, self._stop, notify, saved.resumed, self.kept)
            self.kept = None
            self._pools = [launch.pool] if launch.pool is not None else []
            prepared = prepare(config)
            for line in data_warnings(prepared):
                notify(f"warning: {line}")
            config, runs, self._pools = launch.place(prepared)
            del prepared  # its arrays are in the object store now
            log = StudyLog(self._connect(state), outbox, state, notify)
            saved.create()
            if config.study is None:
                self._run(0, runs[0], self._pools[0], log)
            else:
                self._study(config, runs, log)
            self._flush(outbox)
            outbox.check_all()
            state.finished = True
            saved.write()
            if self._keep:
                self.kept = launch.keep(self._pools)
        finally:
            for pool in self._pools:
                pool.close()
            saved.close()

    def _connect(self, state: StudyState) -> MLflowStore:
        """Connect to MLflow: a resumed study waits for its server; in a new one, a wrong address fails at once."""
        notified = False
        while True:
            try:
                return MLflowStore(state.tracking_uri, state.experiment)
            except ConfigError as error:
                cause = error.__cause__
                if not (self._saved.resumed and isinstance(cause, Exception) and may_pass(cause)):
                    raise
                if not notified:
                    self._board.notify(f"waiting for MLflow: {error}")
                    notified = True
            if self._stop.wait(CONNECT_PAUSE):
                raise Stopped

    def _flush(self, outbox: Outbox) -> None:
        """Wait until MLflow has all that was put into the outbox."""
        while not outbox.flush(0.5):
            if self._stop.is_set():
                raise Stopped

    # Several runs.

    def _study(self, config: Config, runs: list[PlacedRun], log: StudyLog) -> None:
        if not self._saved.state.of_tuning:
            log.open_study(config, [run.config for run in runs], self._saved.uri)
        self._saved.write()
        try:
            failures = self._all(runs, log)
            self._flush(log.outbox)
            for name, error in log.outbox.refusals().items():  # maybe after the last round
                if name not in failures:
                    failures[name] = error
                    self._board.enter([row.name for row in self._saved.state.runs].index(name), "failed")
            if self._results and not self._saved.state.of_tuning:
                log.log_comparison(config, self.results)
            if failures:
                raise StudyFailed(len(runs), failures)
        except BaseException as error:
            if not self._saved.state.of_tuning:
                log.end_study("KILLED" if isinstance(error, Stopped) else "FAILED")
            raise
        if not self._saved.state.of_tuning:
            log.end_study("FINISHED")

    def _all(self, runs: list[PlacedRun], log: StudyLog) -> dict[str, Exception]:
        """Take all runs to their end, as many at a time as there are pools; one that fails does not stop the others.

        Returns the errors, by the name of the run.
        """
        failures: dict[str, Exception] = {}
        waiting: SimpleQueue[tuple[int, PlacedRun] | None] = SimpleQueue()
        for item in (*enumerate(runs), *(None for _ in self._pools)):
            waiting.put(item)

        def work(pool: ActorPool) -> None:
            # As soon as no run waits for it: others may use the cluster.
            with nullcontext() if self._keep else closing(pool):
                for i, run in iter(waiting.get, None):
                    if self._stop.is_set():
                        raise Stopped
                    try:
                        self._run(i, run, pool, log)
                    except Stopped:
                        raise
                    except Exception as error:
                        failures[run.config.name] = error
                        self._board.enter(i, "failed")
                        self._board.notify(f"{run.config.name} failed: {error_message(error)}")

        with ThreadPoolExecutor(len(self._pools), "run") as executor:
            for done in [executor.submit(work, pool) for pool in self._pools]:
                done.result()
        return failures

    # One run.

    def _run(self, i: int, placed: PlacedRun, pool: ActorPool, log: StudyLog) -> None:
        """Take a run to its end; it is restarted with smaller client batches whenever a GPU runs out of memory."""
        self._board.enter(i, "running")
        row = self._saved.state.runs[i]
        tags: dict[str, str] = {}
        folder = self._saved.folder_of(row)
        result = finished_before(placed, row, folder, self._board.notify)
        while result is None:
            listeners = self._listeners(i, placed, row, log, tags)
            run = Run(placed, row, pool, folder, self._saved.resumed, listeners, self._board.notify)
            try:
                result = run.execute()
            except RayTaskError as error:
                size = placed.config.resources.clients_per_batch
                assert isinstance(size, int)
                if not isinstance(error.cause, OutOfDeviceMemory) or not placed.auto_batches or size == 1:
                    raise
                placed = placed.with_batches_of(size // 2)
                tags = {"raysim.restarted": f"out of device memory with {size} clients per batch"}
                self._board.notify(f"{row.name}: {tags['raysim.restarted']}; it starts again with {size // 2}")
                self._saved.forget(row)
        self._results[i] = result
        self._board.enter(i, "finished")

    def _listeners(
        self, i: int, placed: PlacedRun, row: RunState, log: StudyLog, tags: dict[str, str]
    ) -> list[RunListener]:
        """The listeners of a run, in calling order: MLflow gives the run its id, which later ones use."""
        saved, notify, outbox = self._saved, self._board.notify, log.outbox.for_run(row.name)
        folder = saved.folder_of(row)
        made = make_callbacks(placed.config, self._callbacks)
        callbacks = CallbackListener(made, log, outbox, notify, self._home)

        def checkpoint_written(rounds: int) -> None:
            saved.checkpoint_written()
            callbacks.checkpoint_written(rounds)

        listeners: list[RunListener] = []
        if folder is not None:
            listeners.append(CheckpointListener(folder, row.name, notify, checkpoint_written))
        return [
            *listeners,
            MLflowListener(log, outbox, folder.uri if folder is not None else None, saved.journal_of(row), tags),
            *([] if saved.state.of_tuning else [PictureListener(log.store, outbox, notify)]),
            ModelListener(log.store, outbox, notify),
            StudyJsonListener(saved, row, outbox),
            ProgressListener(self._board, i),
            callbacks,
        ]
