"""How a command watches its driver: it polls the status, stops the driver on Ctrl-C, and fetches its results."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from raysim.analysis.comparison import view_of
from raysim.config.loading import children, config_of
from raysim.errors import ConfigError
from raysim.experiments.results import Result, RunResult
from raysim.experiments.status import Status
from raysim.script_source import MAIN
from raysim.storage.study_folder import StudyState
from raysim.tracking.run_description import clients_of, headline_of

POLL_SECONDS = 0.2
STOP_SECONDS = 30  # for closing the MLflow run after Ctrl-C
LEFT_OPEN = f"the run did not stop within {STOP_SECONDS} seconds; its MLflow run may be left open"
ANSWER_SECONDS = 20  # for a driver to say how far it is
AWAY_SECONDS = 300  # without an answer from a driver that is being started again

Watch = Callable[[Status, list[str], list[int]], None]


class RunFailed(RuntimeError):
    """A run ended with an error; the message is the driver's."""


class ClientsFailed(RunFailed):
    """It is the algorithm or its clients that failed, so that the same runs would fail again."""


class RunKilled(RuntimeError):
    """A run was stopped before its end; it is closed as KILLED in MLflow."""


def results_of(
    driver: Any, state: StudyState, folder: str | None, watch: Watch | None, ours: bool, keep: bool = False
) -> Result:
    """Watch a driver to its end and return its results. If it is ``ours``, it is stopped whenever this process ends.

    ``keep``: do not end it if its runs have finished.

    Raises:
        ConfigError: something is wrong with the configuration, the data or the resources.
        RunFailed: a run failed, or the driver is gone.
        RunKilled: the runs were stopped.
    """
    runs = [child for _, child in children(config_of(state.config, [], "study.json"))]
    names, rounds = [child.name for child in runs], [child.rounds for child in runs]
    results: list[RunResult] = []
    parent = None
    try:
        status = _watch(driver, names, rounds, watch, ours)
        while status.state == "finished" and len(results) < len(runs):
            results, parent = ray.get(driver.results.remote())
            if len(results) < len(runs):
                # The driver was killed after it had finished: started again, it reads the results again.
                status = _watch(driver, names, rounds, watch, ours)
    except BaseException:
        if ours:
            _stop(driver)
            ray.kill(driver)
        raise
    if status.state != "finished" or not keep:
        ray.kill(driver)
    if status.problems is not None:
        raise ConfigError(*status.problems)
    way = "Without the YAML file" if state.config["study"] else "To continue from the last checkpoint"
    hint = f"\n{way}: raysim resume {folder}" if folder is not None else ""
    if any(name.startswith(f"{MAIN}:") for run in runs for _, name in run.own_names):  # no other process has its code
        hint = f"\nTo continue here: raysim.resume({folder!r})" if folder is not None else ""
    if status.state == "failed":
        raise (ClientsFailed if status.by_clients else RunFailed)(f"{status.error}{hint}")
    if status.state == "killed":
        raise RunKilled(f"the run was stopped; it is closed as KILLED in MLflow{hint}")
    history = pd.concat([result.history for result in results], ignore_index=True)
    has_models = state.config["tracking"]["models"] != "none"
    view = view_of(history, headline_of(runs), clients_of(runs))
    return Result(results, history, state.tracking_uri, state.experiment, parent, has_models, view)


def _stop(driver: Any) -> None:
    """Let the driver close its MLflow runs before it is killed, whatever ended the command (a closed pipe, a bug)."""
    deadline = time.monotonic() + STOP_SECONDS
    try:
        driver.stop.remote()
        while (
            ray.get(driver.status.remote("", 0), timeout=STOP_SECONDS).state in ("starting", "running")
            and time.monotonic() < deadline
        ):
            time.sleep(POLL_SECONDS)
    except RayError:
        pass  # the driver is gone: there is nothing to wait for


def _watch(driver: Any, names: list[str], rounds: list[int], watch: Watch | None, ours: bool) -> Status:
    """Poll the driver until it is done; on Ctrl-C ask ours to stop and wait until its MLflow run is closed."""
    deadline, life, seen, answered = None, "", 0, time.monotonic()
    while True:
        try:
            status: Status = ray.get(driver.status.remote(life, seen), timeout=ANSWER_SECONDS)
            answered = time.monotonic()
            if status.life != life:
                if life and watch:
                    lost = "the driver was lost and has been started again"
                    watch(Status(events=(lost,)), names, rounds)
                life, seen = status.life, 0
            seen += len(status.events)
            if watch:
                watch(status, names, rounds)
            if status.state in ("finished", "failed", "killed"):
                return status
            if deadline is not None and time.monotonic() > deadline:
                raise RunKilled(LEFT_OPEN)
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if deadline is not None or not ours:
                raise
            deadline = time.monotonic() + STOP_SECONDS
            driver.stop.remote()
        except (ActorUnavailableError, GetTimeoutError) as error:  # Ray is starting it again, or it is very busy
            if deadline is not None and time.monotonic() > deadline:
                raise RunKilled(LEFT_OPEN) from error
            if time.monotonic() - answered > AWAY_SECONDS:
                raise RunFailed(f"the driver actor does not answer: {error}") from error
            time.sleep(POLL_SECONDS)
        except RayError as error:
            raise RunFailed(f"the driver actor is gone: {error}") from error
