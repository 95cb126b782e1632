"""The driver actor: it takes the runs of a command through their rounds and is the only one that writes.

Its constructor starts the work in a thread, so that a driver that Ray starts again after it was killed goes on by itself,
from the last checkpoint. It outlives the command that started it: whoever asks for its ``status`` sees how far it is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import uuid
import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import ray
import torch

from raysim.workers.actor_pool import Stopped
from raysim.errors import ConfigError
from raysim.federation.rounds import RoundReport
from raysim.experiments.study import Job, RunPhase, RunResult, Study, told

NAMESPACE = "raysim"
UNATTENDED_SECONDS = 60  # after its end, until nobody is expected to ask any more


@dataclass(frozen=True)
class Status:
    """What the command sees when it polls."""

    state: Literal["starting", "running", "finished", "failed", "killed"] = "starting"
    life: str = ""
    """Another one after the driver was started again."""
    phases: tuple[RunPhase, ...] = ()
    """Of every run."""
    reports: dict[int, RoundReport] = field(default_factory=dict)
    """By the index of a run that is under way, how far it is with its round."""
    events: tuple[tuple[int, RoundReport] | str, ...] = ()
    """Since the caller last asked: (run, report) of completed rounds, and what the user is to be told."""
    error: str | None = None
    problems: tuple[str, ...] | None = None
    """If the configuration, the data or the resources are at fault: each problem."""


@dataclass
class _Shared:
    """Between the working threads and the actor's methods."""

    lock: threading.Lock = field(default_factory=threading.Lock)

    status: Status = field(default_factory=Status)
    events: list[tuple[int, RoundReport] | str] = field(default_factory=list)


# Calls that were under way when the process was killed are made again: each of them may be.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=4)
class Driver:
    """See the module's docstring."""

    def __init__(self, job: Job) -> None:
        # Last: a folder `algorithms` of the user's must not take the place of ours.
        sys.path.extend(entry for entry in job.import_path if entry not in sys.path)
        torch.set_num_threads(1)  # as in the client actors: the server step is part of the result
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # a bug is told once, not once for every task in flight
        # Whether the store answers is for raysim's outbox to find out, again and again.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._stop = threading.Event()
        self._shared = _Shared(status=Status(life=uuid.uuid4().hex))
        self._asked = time.monotonic()
        with warnings.catch_warnings():  # of Ray, about what its own property calls
            warnings.simplefilter("ignore")
            self._again: bool = ray.get_runtime_context().was_current_actor_reconstructed
        self._study = Study(job, self._shared.events.append, self._report, self._entered, self._stop)
        self._update(phases=("waiting",) * len(self._study.state.runs))
        self._thread = threading.Thread(target=self._main, name="rounds", daemon=True)
        self._thread.start()

    def status(self, life: str, seen: int) -> Status:
        """How far it is, with the events from the ``seen``-th of this ``life`` on."""
        self._asked, status = time.monotonic(), self._shared.status
        return replace(status, events=tuple(self._shared.events[seen if life == status.life else 0 :]))

    def stop(self) -> None:
        """Ask the runs to end; the one under way is closed as KILLED, then ``status`` says so."""
        self._stop.set()

    def results(self) -> tuple[list[RunResult], str | None]:
        """All finished runs, and the id of the study's parent run."""
        return self._study.results, self._study.state.parent

    def process(self) -> int:
        """The id of this process."""
        return os.getpid()

    def _main(self) -> None:
        try:
            self._study.execute(again=self._again)
            self._update(state="finished")
        except Stopped:
            self._update(state="killed")
        except ConfigError as error:
            self._update(state="failed", error=str(error), problems=error.problems)
        except Exception as error:
            self._update(state="failed", error=told(error))
        while time.monotonic() - self._asked < UNATTENDED_SECONDS:
            time.sleep(1.0)
        ray.kill(ray.get_runtime_context().current_actor)

    def _report(self, run: int, report: RoundReport) -> None:
        with self._shared.lock:
            reports = {**self._shared.status.reports, run: report}
            self._shared.status = replace(self._shared.status, state="running", reports=reports)
        if report.completed is not None:
            self._shared.events.append((run, report))

    def _entered(self, run: int, phase: RunPhase) -> None:
        with self._shared.lock:
            phases = self._shared.status.phases
            phases = (*phases[:run], phase, *phases[run + 1 :])
            ended = {run} if phase in ("finished", "failed") else set()
            reports = {i: report for i, report in self._shared.status.reports.items() if i not in ended}
            self._shared.status = replace(self._shared.status, phases=phases, reports=reports)

    def _update(self, **changes: Any) -> None:
        with self._shared.lock:
            self._shared.status = replace(self._shared.status, **changes)
