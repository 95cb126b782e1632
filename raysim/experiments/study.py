"""The runs of a command, each from its start or its last checkpoint to its end, logged to MLflow.

One after another, or several at a time, each with its own pool of actors.

Whatever happens, the way back is the same: go to the last checkpoint and play the rounds since then again. They have the same
bits, so nothing but time is lost.
"""

from __future__ import annotations

import getpass
import json
import platform
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from raysim import __version__
from raysim.workers.actor_pool import ActorPool, Stopped
from raysim.config.schema import Config
from raysim.config.loading import children, config_of, dump
from raysim.tracking.dashboard import saved_view
from raysim.tracking.description import describe_study, differing, title
from raysim.errors import ClientError, ConfigError, OutOfDeviceMemory
from raysim.tracking.journal import Outbox
from raysim.experiments.preparation import Launch, RunSpec, prepare, with_config
from raysim.federation.rounds import RoundReport
from raysim.storage.study_folder import StudyFolder, StudyState
from raysim.tracking.mlflow_store import CHECKPOINT_TAG, DESCRIPTION_TAG, Tracker, in_ray_job, may_pass

RunPhase = Literal["waiting", "running", "finished", "failed"]
MOST_STARTS = 10  # of the driver without a checkpoint in between, after which it is not bad luck
STOP_SECONDS = 10  # for what MLflow still has to hear when a run is stopped


@dataclass(frozen=True)
class Job:
    """What a command asks of the driver, in words: no class of a user's own module is needed to read it."""

    state: str
    """JSON of a ``StudyState``: the configuration, and where it is logged."""
    folder: str | None
    """Of checkpoints; None if there are none."""
    home: str
    """Where journals of runs with a remote folder are kept."""
    import_path: tuple[str, ...]
    """Folders from which a user's own algorithm can be imported."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    entry: str
    seed: int
    run_id: str
    history: pd.DataFrame
    clients: pd.DataFrame
    """A row per client after the last round: accuracy, AUC, samples, label entropy, domain."""
    new_clients: pd.DataFrame | None
    """The same of clients that never took part, ``before`` and ``after`` they adapted; None if there are none."""
    shared: NDArray[np.float32]
    checksums: dict[str, str]


class Study:
    """See the module's docstring.

    Args:
        say: tells the user what happens.
        report: told how far the run of an index is.
        entered: told when the run of an index is ``running``, ``finished`` or ``failed``.
        stop: set when the runs are to end; ``Stopped`` is raised then.
    """

    def __init__(
        self,
        job: Job,
        say: Callable[[str], None],
        report: Callable[[int, RoundReport], None],
        entered: Callable[[int, RunPhase], None],
        stop: threading.Event,
    ) -> None:
        self.job, self.say, self.report, self._entered, self._stop = job, say, report, entered, stop
        self._results: dict[int, RunResult] = {}
        self._writing, self._unwritten = threading.Lock(), False
        self.folder = StudyFolder(job.folder) if job.folder is not None else None
        self.state = StudyState.model_validate(json.loads(job.state))
        self.goes_on = False
        self._pools: list[ActorPool] = []

    @property
    def results(self) -> list[RunResult]:
        """Of the runs that are finished, in their order."""
        return [self._results[i] for i in sorted(self._results)]

    def execute(self, again: bool = False) -> None:
        """Take all runs to their end.

        Args:
            again: whether a driver before this one was killed.

        Raises:
            ConfigError, ClientError: see their messages.
            StudyFailed: some runs of a study failed.
            Stopped: asked to stop; the runs are closed as KILLED.
        """
        self._read_state(again)
        config = config_of(self.state.config, [], "study.json" if self.goes_on else "config")
        self.outbox = Outbox(self.say, self._stop)
        try:
            uri, path = self.state.tracking_uri, list(self.job.import_path)
            launch = Launch(config, path, uri, self._stop, self.say, patient=self.goes_on)
            self._pools = [launch.pool] if launch.pool is not None else []
            runs = prepare(config)
            self._config, specs, self._pools = launch.specs(runs)
            del runs  # its arrays are in the object store now
            self.tracker = self._connect()
            self._first_state()
            if config.study is None:
                self._run(0, specs[0], self._pools[0])
            else:
                self._study(specs)
            self._flush()
            self.outbox.check_all()
            self.state.finished = True
            self.write_state()
        finally:
            for pool in self._pools:
                pool.close()
            if self.folder is not None:
                self.folder.unlock()

    def _flush(self) -> None:
        """Wait until MLflow has all that was put."""
        while not self.outbox.flush(0.5):
            if self._stop.is_set():
                raise Stopped

    # What is on disk.

    def _read_state(self, again: bool) -> None:
        if self.folder is None:
            return
        if self.folder.read() is None:
            if again:
                raise ClientError("the driver died while it prepared the runs: was the machine out of memory?")
            return
        self.folder.lock()
        found = self.folder.read()  # whoever had the lock may have written
        assert found is not None
        self.state, self.goes_on = found, True
        self.state.finished = False
        self.state.starts += 1
        if self.state.starts > MOST_STARTS:
            raise ClientError(
                f"{self.folder.uri}: the driver was started {MOST_STARTS} times without reaching a checkpoint; see Ray's "
                "logs for what kills it, then continue with `raysim resume`"
            )
        self.write_state()

    def _first_state(self) -> None:
        """All is well with what was asked for: from now on there is something to go on with."""
        if self.folder is None or self.goes_on:
            return
        try:
            self.folder.lock()
            self.folder.write(self.state)
        except OSError as error:
            raise ConfigError(f"checkpoint.dir: {self.folder.uri}: {error}") from error

    def write_state(self) -> None:
        if self.folder is None:
            return
        try:
            with self._writing:
                self.folder.write(self.state)
            self._unwritten = False
        except OSError as error:  # a full disk
            if not self._unwritten:
                self.say(f"{self.folder.uri}/study.json: can't be written: {error}; tried again after the next round")
            self._unwritten = True

    def after_a_round(self) -> None:
        """Write down what a full disk had no room for."""
        if self._unwritten:
            self.write_state()

    def made_progress(self) -> None:
        """A checkpoint is complete: if the driver dies from now on, it is another time."""
        if self.state.starts > 1:
            self.state.starts = 1
            self.write_state()

    def forget(self, i: int) -> None:
        """The run of an index starts anew, in another MLflow run: nothing of what it was is of use."""
        row = self.state.runs[i]
        if self.folder is not None:
            self.folder.of(row).clear()
            self.folder.journal(row, Path(self.job.home)).unlink(missing_ok=True)
        row.run_id, row.facts = None, {}
        self.write_state()

    def _connect(self) -> Tracker:
        """A run that goes on waits for its server; a new one has better know at once that the address is wrong."""
        told = False
        while True:
            try:
                return Tracker(self.state.tracking_uri, self.state.experiment)
            except ConfigError as error:
                if not (self.goes_on and isinstance(error.__cause__, Exception) and may_pass(error.__cause__)):
                    raise
                if not told:
                    self.say(f"waiting for MLflow: {error}")
                    told = True
            if self._stop.wait(2.0):
                raise Stopped

    # Runs.

    def _study(self, specs: list[RunSpec]) -> None:
        config, tracker = self._config, self.tracker
        tags = {**self.tags(config), "raysim.kind": "study"}
        keys = differing([spec.config for spec in specs])

        def start() -> str:
            return tracker.start(config.name, {"study.runs": len(specs)}, tags)

        parent = self.state.parent = self.started(
            self.outbox, self.state.parent, self.folder.uri if self.folder is not None else None, start, tags
        )
        self.write_state()
        with self.ending(self.outbox, parent):
            self.outbox.put(lambda: tracker.log_text(parent, dump(config), "config.yaml"))
            about = {DESCRIPTION_TAG: describe_study(config, len(specs), self.state.git_commit, parent)}
            self.outbox.put(lambda: tracker.set_tags(parent, about))
            self.outbox.put(lambda: tracker.set_view(saved_view(parent, f"latest study: {config.name}", keys)))
            failures = self._all(specs)
            self._flush()
            for name, error in self.outbox.refusals().items():  # maybe after the last round
                if name not in failures:
                    failures[name] = error
                    self._entered([row.name for row in self.state.runs].index(name), "failed")
            if self._results:
                self._log_comparison(parent, config)
            if failures:
                raise StudyFailed(len(specs), failures)

    def _all(self, specs: list[RunSpec]) -> dict[str, Exception]:
        """Take all runs to their end, as many at a time as there are pools; one that fails does not stop the others.

        Returns what went wrong, by the name of the run.
        """
        failures: dict[str, Exception] = {}
        waiting: SimpleQueue[tuple[int, RunSpec] | None] = SimpleQueue()
        for item in (*enumerate(specs), *(None for _ in self._pools)):
            waiting.put(item)

        def work(pool: ActorPool) -> None:
            with closing(pool):  # as soon as no run waits for it: on a busy cluster somebody else does
                for i, spec in iter(waiting.get, None):
                    if self._stop.is_set():
                        raise Stopped
                    try:
                        self._run(i, spec, pool)
                    except Stopped:
                        raise
                    except Exception as error:
                        failures[spec.config.name] = error
                        self._entered(i, "failed")
                        self.say(f"{spec.config.name} failed: {told(error)}")

        with ThreadPoolExecutor(len(self._pools), "run") as executor:
            for done in [executor.submit(work, pool) for pool in self._pools]:
                done.result()
        return failures

    def finished(self, i: int, result: RunResult) -> None:
        """The rounds of the run of an index are done, now or before."""
        self._results[i] = result
        self._entered(i, "finished")

    def _log_comparison(self, parent: str, config: Config) -> None:
        from raysim.analysis.comparison import compare
        from raysim.analysis.summary import study_files  # not at the top: actors start while matplotlib is imported

        history = pd.concat([r.history for r in self.results], ignore_index=True)
        clients = {(r.entry, r.seed): r.clients for r in self.results}
        runs = dict(children(config))
        algorithms = {entry: child.algorithm.name for entry, child in runs.items()}
        data = {e: child.data.model_dump_json() + child.evaluate.model_dump_json() for e, child in runs.items()}

        text = describe_study(config, len(self.state.runs), self.state.git_commit, parent, compare(history))

        def draw() -> None:
            self.tracker.set_tags(parent, {DESCRIPTION_TAG: text})
            pictures = self.drawn(lambda: study_files(history, clients, algorithms, data, title(config)))
            self.tracker.log_files(parent, pictures)

        self.outbox.put(draw)

    def drawn(self, draw: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
        """Pictures; one that can't be drawn is told and is no reason to end a run."""
        try:
            return draw()
        except Exception as error:
            self.say(f"the pictures can't be drawn: {error!r}")
            return {}

    def _run(self, i: int, spec: RunSpec, pool: ActorPool) -> None:
        """A run; started again with smaller client batches as often as a GPU's memory does not suffice."""
        self._entered(i, "running")
        reason: dict[str, str] = {}
        while True:
            try:
                from raysim.experiments.run import Attempt  # which needs this module

                return Attempt(self, i, spec, pool, reason).execute()
            except RayTaskError as error:
                size = spec.config.resources.clients_per_batch
                assert isinstance(size, int)
                if not isinstance(error.cause, OutOfDeviceMemory) or not spec.may_vectorise or size == 1:
                    raise
                resources = spec.config.resources.model_copy(update={"clients_per_batch": size // 2})
                spec = with_config(spec, spec.config.model_copy(update={"resources": resources}))
                reason = {"raysim.restarted": f"out of device memory with {size} clients per batch"}
                self.say(f"{spec.config.name}: {reason['raysim.restarted']}; it starts again with {size // 2}")
                self.forget(i)

    def started(
        self, outbox: Outbox, run_id: str | None, folder: str | None, start: Callable[[], str], tags: dict[str, str]
    ) -> str:
        """The id of an MLflow run that goes on, or of a new one."""
        if folder is not None:
            tags[CHECKPOINT_TAG] = folder

        def find_or_start() -> str:
            if run_id is not None:
                self.tracker.reopen(run_id)
                return run_id
            return start()

        answer: str = outbox.ask(find_or_start, Stopped)
        return answer

    @contextmanager
    def ending(self, outbox: Outbox, run_id: str) -> Iterator[None]:
        """Ends an MLflow run with the status that the block's outcome asks for."""
        end = self.tracker.end
        try:
            yield
        except BaseException as error:
            status = "KILLED" if isinstance(error, Stopped) else "FAILED"
            outbox.put(lambda: end(run_id, status), in_any_case=True)
            with suppress(ConfigError):  # what MLflow refuses is not the reason, or is ``error`` itself
                outbox.flush(STOP_SECONDS)
            raise
        outbox.put(lambda: end(run_id, "FAILED" if outbox.refused else "FINISHED"), in_any_case=True)

    def tags(self, config: Config, machine: dict[str, str] | None = None) -> dict[str, str]:
        """What MLflow's table can be filtered by."""
        tags = {"raysim.dataset": config.data.name, "raysim.model": config.model.name}
        tags |= {"mlflow.source.name": "raysim", "mlflow.source.type": "JOB" if in_ray_job() else "LOCAL"}
        with suppress(KeyError, OSError):  # a container's user may have no name
            tags["mlflow.user"] = getpass.getuser()
        tags |= {f"version.{name}": value for name, value in versions().items()}
        if machine is not None:
            tags["raysim.algorithm"] = config.algorithm.name
            tags |= {"raysim.device": machine["device"], "raysim.device_name": machine["device_name"]}
        if self.state.git_commit:
            tags["mlflow.source.git.commit"] = self.state.git_commit
        return tags


class StudyFailed(ClientError):
    """Some runs of a study failed; the others are finished."""

    def __init__(self, runs: int, failures: dict[str, Exception]) -> None:
        lines = [f"  {name}: {_in_a_line(error)}" for name, error in failures.items()]
        others = "the others are finished; " if len(failures) < runs else ""
        super().__init__(
            "\n".join([f"{len(failures)} of {runs} runs failed:", *lines, f"{others}the same command tries again"])
        )


def _in_a_line(error: Exception) -> str:
    """The first of its words; of a traceback the last, which says what was wrong."""
    lines = told(error).strip().splitlines()
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def told(error: Exception) -> str:
    """What a user needs to know of an error: its words, or of a bug where it happened."""
    if isinstance(error, RayTaskError):
        # Raised in an actor: its cause says what happened, Ray's own text would repeat it.
        return str(error.cause if isinstance(error.cause, ClientError) else error)
    if isinstance(error, ConfigError | ClientError):
        return str(error)
    return "".join(traceback.format_exception(error))


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "raysim": __version__,
        "ray": ray.__version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "python": platform.python_version(),
    }
