"""The driver actor: it owns the pool of client actors, takes run after run through its rounds, and writes to MLflow.

Its constructor starts the work in a thread; the command polls ``status`` and asks it to stop. All children of a study go
through one driver, so that they share one pool of actors.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from raysim import __version__
from raysim.compare import compare
from raysim.config import Config
from raysim.config_file import dump
from raysim.errors import ClientError, ConfigError, OutOfDeviceMemory
from raysim.parameters import ParameterLayout
from raysim.rounds import RoundReport, Run
from raysim.scheduling import ActorPool, Stopped
from raysim.tasks import RunSetup
from raysim.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSpec:
    """A run as the command prepared it."""

    entry: str
    """Name of the study entry, the same for all its seeds."""
    setup: RunSetup
    layout: ParameterLayout
    dataset_digest: str
    class_names: tuple[str, ...]
    class_counts: NDArray[np.int64]
    """(N, classes)"""
    domains: NDArray[np.str_]
    may_vectorise: bool
    """Whether ``clients_per_batch`` was chosen by raysim, so that it may choose a smaller one."""

    @property
    def config(self) -> Config:
        return self.setup.config


@dataclass(frozen=True)
class Job:
    """What the command hands to the driver: one run, or the runs of a study."""

    config: Config
    runs: list[RunSpec]
    tracking_uri: str
    git_commit: str | None

    @property
    def experiment(self) -> str:
        return self.config.tracking.experiment or self.config.name


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    entry: str
    seed: int
    run_id: str
    history: pd.DataFrame
    clients: pd.DataFrame
    shared: NDArray[np.float32]
    checksums: dict[str, str]


@dataclass(frozen=True)
class Status:
    """What the command sees when it polls."""

    state: Literal["starting", "running", "finished", "failed", "killed"] = "starting"
    report: RoundReport | None = None
    """Of the round under way."""
    run: int = 0
    """Index of the run that ``report`` is about."""
    finished: tuple[tuple[int, RoundReport], ...] = ()
    """(run, report) of the rounds that were completed since the caller last asked."""
    note: str = ""
    """What is waited for."""
    error: str | None = None


@dataclass
class _Shared:
    """Between the working thread and the actor's methods."""

    status: Status = field(default_factory=Status)
    finished: list[tuple[int, RoundReport]] = field(default_factory=list)
    results: list[RunResult] = field(default_factory=list)
    parent: str | None = None


@ray.remote(max_restarts=0, max_concurrency=4)
class Driver:
    """See the module's docstring."""

    def __init__(
        self, job: list[ray.ObjectRef], num_actors: int, actor_options: dict[str, Any], import_path: list[str]
    ) -> None:
        sys.path.extend(entry for entry in import_path if entry not in sys.path)
        # In a list, so that it is unpickled only now: it may hold classes of the user's own modules.
        self._job: Job = ray.get(job[0])
        torch.set_num_threads(1)  # as in the client actors: the server step is part of the result
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # a bug is told once, not once for every task in flight
        self._stop = threading.Event()
        self._shared = _Shared()
        self._pool_arguments = (num_actors, actor_options, import_path, self._stop)
        self._thread = threading.Thread(target=self._main, name="rounds", daemon=True)
        self._thread.start()

    def status(self, seen: int) -> Status:
        """How far it is, with the reports of completed rounds from the ``seen``-th on."""
        return replace(self._shared.status, finished=tuple(self._shared.finished[seen:]))

    def stop(self) -> None:
        """Ask the run to end; it is closed as KILLED, then ``status`` says so."""
        self._stop.set()

    def results(self) -> tuple[list[RunResult], str | None]:
        """All finished runs, and the id of the study's parent run."""
        return self._shared.results, self._shared.parent

    def _main(self) -> None:
        try:
            Study(self._job, ActorPool(*self._pool_arguments), self._shared).execute()
            self._update(state="finished")
        except Stopped:
            self._update(state="killed")
        except RayTaskError as error:
            # Raised in an actor: its cause says what happened, Ray's own text would repeat it.
            self._update(state="failed", error=str(error.cause if isinstance(error.cause, ClientError) else error))
        except (ClientError, ConfigError) as error:
            self._update(state="failed", error=str(error))
        except Exception:
            self._update(state="failed", error=traceback.format_exc())

    def _update(self, **changes: Any) -> None:
        self._shared.status = replace(self._shared.status, **changes)


class Study:
    """Takes the runs of a job through a pool, one after another, each logged to MLflow."""

    def __init__(self, job: Job, pool: ActorPool, shared: _Shared) -> None:
        self._job, self._pool, self._shared = job, pool, shared
        self._tracker = Tracker(job.tracking_uri, job.experiment)

    def execute(self) -> None:
        if self._job.config.study is None:
            self._run(self._job.runs[0], None)
            return
        config = self._job.config
        tags = {**self._tags(config), "raysim.kind": "study"}
        parent = self._shared.parent = self._tracker.start(config.name, {"study.runs": len(self._job.runs)}, tags)
        with _closing(self._tracker, parent):
            self._tracker.log_text(parent, dump(config), "config.yaml")
            for i, spec in enumerate(self._job.runs):
                self._say(run=i, report=None)
                self._run(spec, parent)
            from raysim.plots import plot_comparison

            history = pd.concat([r.history for r in self._shared.results], ignore_index=True)
            self._tracker.log_figure(parent, plot_comparison(history, title(config)), "comparison.png")
            self._tracker.log_table(parent, compare(history), "comparison.csv")

    def _run(self, spec: RunSpec, parent: str | None) -> None:
        """A run; started again with smaller client batches as often as a GPU's memory does not suffice."""
        reason: dict[str, str] = {}
        while True:
            try:
                return self._attempt(spec, parent, reason)
            except RayTaskError as error:
                size = spec.config.resources.clients_per_batch
                assert isinstance(size, int)
                if not isinstance(error.cause, OutOfDeviceMemory) or not spec.may_vectorise or size == 1:
                    raise
                resources = spec.config.resources.model_copy(update={"clients_per_batch": size // 2})
                config = spec.config.model_copy(update={"resources": resources})
                spec = replace(spec, setup=replace(spec.setup, config=config))
                reason = {"raysim.restarted": f"out of device memory with {size} clients per batch"}
                log.warning("%s: %s; the run starts again with %d", config.name, reason["raysim.restarted"], size // 2)
                self._say(note=f"{config.name}: {reason['raysim.restarted']}; it starts again with {size // 2}")

    def _attempt(self, spec: RunSpec, parent: str | None, tags: dict[str, str]) -> None:
        config = spec.config
        folder = Path(tempfile.mkdtemp(prefix="raysim-"))
        try:
            setup = replace(spec.setup, slot_file=folder / "personal_state")
            machine = self._pool.configure(setup, lambda note: self._say(note=note))
            run_id = self._tracker.start(
                config.name,
                {**config.flat(), **_sizes(spec)},
                {
                    **self._tags(config, machine),
                    **tags,
                    "raysim.entry": spec.entry,
                    "raysim.dataset_digest": spec.dataset_digest,
                },
                parent,
            )
            with _closing(self._tracker, run_id):
                self._rounds(spec, setup, run_id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _rounds(self, spec: RunSpec, setup: RunSetup, run_id: str) -> None:
        config = spec.config
        self._tracker.log_text(run_id, dump(config), "config.yaml")
        from raysim.plots import plot_partition  # not at the top: actors start while matplotlib is imported

        figure = plot_partition(
            spec.class_counts, spec.class_names, f"{config.data.name}: samples per client and class"
        )
        self._tracker.log_figure(run_id, figure, "partition.png")
        run = Run(setup, spec.layout, self._pool, spec.domains, self._report)
        try:
            for round in range(config.rounds):
                self._log(run_id, run.round(round))
            self._log(run_id, run.finish())
            self._tracker.log_table(run_id, run.clients, "clients.csv")
            self._tracker.log_arrays(run_id, run.accuracy(), "accuracy.npz")
            if run.rejections:
                self._tracker.log_table(
                    run_id, pd.DataFrame(run.rejections, columns=["round", "client"]), "rejected.csv"
                )
            checksums = run.checksums()
            self._tracker.set_tags(run_id, {f"checksum.{name}": value for name, value in checksums.items()})
        finally:
            run.close()
        history = pd.DataFrame(run.history).astype({"round": int})
        history.insert(0, "name", spec.entry)
        history.insert(1, "seed", config.seed)
        history.insert(2, "run_id", run_id)
        self._shared.results.append(
            RunResult(spec.entry, config.seed, run_id, history, run.clients, run.shared.numpy(), checksums)
        )

    def _log(self, run_id: str, rounds: list[tuple[int, dict[str, float]]]) -> None:
        for round, metrics in rounds:
            self._tracker.log_round(run_id, round, metrics)

    def _tags(self, config: Config, machine: dict[str, str] | None = None) -> dict[str, str]:
        """What MLflow's table can be filtered by."""
        tags = {
            "raysim.dataset": config.data.name,
            "raysim.model": config.model.name,
            "version.raysim": __version__,
            "version.ray": ray.__version__,
            "version.torch": torch.__version__,
            "version.timm": version("timm"),
            "version.python": platform.python_version(),
        }
        if machine is not None:
            tags["raysim.algorithm"] = config.algorithm.name
            tags |= {"raysim.device": machine["device"], "raysim.device_name": machine["device_name"]}
        if self._job.git_commit:
            tags["mlflow.source.git.commit"] = self._job.git_commit
        return tags

    def _report(self, report: RoundReport) -> None:
        self._say(report=report)
        if report.metrics is not None:
            self._shared.finished.append((self._shared.status.run, report))

    def _say(self, **changes: Any) -> None:
        self._shared.status = replace(self._shared.status, state="running", **changes)


def title(config: Config) -> str:
    """What a comparison's picture says: the data, who trains, and what is evaluated."""
    cohort, clients = config.cohort_size, config.data.num_clients
    when = "before aggregation" if config.evaluate.protocol == "paper" else "after aggregation"
    return f"{config.name}: {cohort} of {clients} clients train per round, evaluated {when}"


def _sizes(spec: RunSpec) -> dict[str, int]:
    layout = spec.layout
    state = spec.config.algorithm.client_state(torch.zeros(layout.num_parameters), layout)
    return {
        "model.shared_parameters": layout.num_shared,
        "model.personal_parameters": layout.num_personal,
        "model.state_parameters": sum(vector.numel() for vector in state.values()),
    }


@contextmanager
def _closing(tracker: Tracker, run_id: str) -> Iterator[None]:
    """Ends an MLflow run with the status that the block's outcome asks for."""
    try:
        yield
    except Stopped:
        tracker.end(run_id, "KILLED")
        raise
    except BaseException:
        tracker.end(run_id, "FAILED")
        raise
    tracker.end(run_id, "FINISHED")
