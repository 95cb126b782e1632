"""The driver actor: it takes the runs of a command through their rounds and is the only one that writes.

Its constructor starts the work in a thread, so that a driver that Ray restarts after it was killed continues by itself,
from the last checkpoint. It outlives the command that started it; any command can ask for its ``status``.
"""

from __future__ import annotations

import os
import threading
import time
import warnings

import ray
import torch

from raysim.errors import ConfigError, Stopped
from raysim.experiments.launch import KeptActors
from raysim.experiments.results import RunResult, StudyFailed, error_message
from raysim.experiments.status import Status, StatusBoard
from raysim.experiments.study import Study, StudyRequest

NAMESPACE = "raysim"
UNATTENDED_SECONDS = 60  # once its runs are over, the driver ends itself if nobody asks for its status for this long


# Calls that were under way when the process was killed are repeated; every method allows that.
@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=4)
class Driver:
    """Works on a request in a thread of its own; its methods answer at any time.

    Args:
        keep: whether it and its actors may get another request once this one is done.
    """

    def __init__(self, request: StudyRequest, keep: bool = False) -> None:
        request.code.install()
        torch.set_num_threads(1)  # as in the client actors: the server step is part of the result
        os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # a bug is shown once, not once for every task in flight
        # The outbox repeats calls to MLflow itself.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        self._keep = keep
        with warnings.catch_warnings():  # Ray's property warns about what it calls itself
            warnings.simplefilter("ignore")
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._begin(request, restarted, None)
        threading.Thread(target=self._end_unattended, name="unattended", daemon=True).start()

    def take(self, request: StudyRequest) -> bool:
        """Work on another request, with the actors of the last one; False if that is not done."""
        self._thread.join(timeout=1.0)
        if self._thread.is_alive():
            return False
        self._begin(request, False, self._study.kept)
        return True

    def _begin(self, request: StudyRequest, restarted: bool, kept: KeptActors | None) -> None:
        self._asked = time.monotonic()
        self._stop, self._board = threading.Event(), StatusBoard()
        self._study = Study(request, self._board, self._stop, self._keep, kept)
        self._thread = threading.Thread(target=self._main, args=(restarted,), name="rounds", daemon=True)
        self._thread.start()

    def status(self, life: str, seen: int) -> Status:
        """How far the runs are, and the events of this ``life`` after the first ``seen``."""
        self._asked = time.monotonic()
        return self._board.since(life, seen)

    def stop(self) -> None:
        """Ask the runs to end; the one under way is closed as KILLED, then ``status`` says so."""
        self._stop.set()

    def results(self) -> tuple[list[RunResult], str | None]:
        """All finished runs, and the id of the study's parent run."""
        return self._study.results, self._study.parent

    def process(self) -> int:
        """The id of this process."""
        return os.getpid()

    def _main(self, restarted: bool) -> None:
        try:
            self._study.execute(restarted)
            self._board.update(state="finished")
        except Stopped:
            self._board.update(state="killed")
        except ConfigError as error:
            self._board.update(state="failed", error=str(error), problems=error.problems)
        except StudyFailed as error:
            self._board.update(state="failed", error=error_message(error), by_clients=error.by_clients)
        except BaseException as error:  # also what ends threads: the command would wait for ever
            self._board.update(state="failed", error=error_message(error))

    def _end_unattended(self) -> None:
        while self._thread.is_alive() or time.monotonic() - self._asked < UNATTENDED_SECONDS:
            time.sleep(1.0)
        ray.kill(ray.get_runtime_context().current_actor)
