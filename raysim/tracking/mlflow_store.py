"""An MLflow experiment, and what raysim writes to it: a run per ``Config``, a parent run per study, one call per round.

Only the driver writes. ``outbox.py`` repeats calls that fail because the server is away. mlflow and sqlalchemy are imported
inside functions: they take two seconds, in which the driver starts its actors.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.errors import ConfigError
from raysim.tracking.dashboard import MEANS_TAG, VIEW_TAG
from raysim.tracking.tags import CHECKPOINT_TAG

MAX_PARAMETER = 6000  # MLflow's limit on the length of a parameter
# Errors that waiting does not help against; all others come from a server or network that may come back.
REFUSED = {
    *("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "FEATURE_DISABLED", "NOT_IMPLEMENTED"),
}
DRIVERS = {  # what pip calls the modules that databases need
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
    "pyodbc": "pyodbc",
}
ANSWER_SECONDS = 30  # for a tracking server to answer at all
LATER = {408, 425, 429}  # HTTP: timeout, too early, too many requests


def may_pass(error: Exception) -> bool:
    """Whether an error of the store may go away with time: the store is unreachable, overloaded, locked or full."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code not in REFUSED
    if isinstance(error, HTTPError) and error.response is not None:  # of an artifact: too large, or not allowed
        return error.response.status_code >= 500 or error.response.status_code in LATER
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError) or (
        isinstance(error, OSError) and error.errno == errno.EROFS
    ):
        return False  # a folder of artifacts that only the server's machine has
    return isinstance(error, SQLAlchemyError | OSError)  # requests' errors are OSErrors


def check_store(uri: str) -> None:
    """Raises ConfigError if the store to be read is a file that does not exist."""
    if uri.startswith("sqlite:////") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ConfigError(f"there is no MLflow store {uri}: run something first, or name another with --uri")


def check_address(uri: str) -> None:
    """Raises ConfigError if a run can't be logged there, as far as that can be told without MLflow, which takes seconds."""
    if uri.startswith("sqlite:////"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if folder.is_dir() and not os.access(folder, os.W_OK):  # MLflow would try for minutes
            raise ConfigError(
                f"tracking.uri: {uri} can't be used: {folder} can't be written; set RAYSIM_HOME or MLFLOW_TRACKING_URI"
            )
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            requests.get(uri, timeout=ANSWER_SECONDS)  # whatever the answer is
        except requests.exceptions.SSLError:
            pass  # MLflow has settings of its own for certificates
        except requests.exceptions.RequestException as error:
            raise ConfigError(f"tracking.uri: {uri} can't be used: {error}") from error


def check_writes(uri: str) -> None:
    """Raises ConfigError if nothing can be written to a tracking server; an experiment is made and deleted again."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with few_retries(), _with_driver(uri):
            client = MlflowClient(uri)
            client.delete_experiment(client.create_experiment(f"raysim doctor {secrets.token_hex(6)}"))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ConfigError(f"{uri} can't be written: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def _with_driver(uri: str) -> Iterator[None]:
    """Say which package is missing for a database.

    Raises:
        ConfigError: one is.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in DRIVERS:
            raise
        raise ConfigError(
            f"tracking.uri: a store of the kind {uri.split(':')[0]} needs the module {error.name}: "
            f"pip install '{DRIVERS[error.name]}'"
        ) from error


@contextmanager
def few_retries() -> Iterator[None]:
    """MLflow tries an unreachable server for minutes; at first contact the address is more likely wrong."""
    key = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(key)
    os.environ[key] = before or "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Let only one process at a time use a SQLite store; a server handles several users itself."""
    if not uri.startswith("sqlite:////"):
        yield
        return
    folder = Path(uri.removeprefix("sqlite:///")).parent
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class MLflowStore:
    """An MLflow experiment at a tracking URI.

    Raises:
        ConfigError: the store can't be reached or the experiment was deleted.
    """

    def __init__(self, uri: str, experiment: str, create: bool = True) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
        from sqlalchemy.exc import SQLAlchemyError

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # its database migrations are no news to our user
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # for files of a few kilobytes
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the command says where to look
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.uri, self.experiment = uri, experiment
        if create and uri.startswith("sqlite:////"):
            check_address(uri)
        if not create and uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            raise ConfigError(f"tracking.uri: there is no store {uri}")
        try:
            with _one_at_a_time(uri):  # two first runs in one folder would both create the tables
                with few_retries(), _with_driver(uri):
                    self._client = MlflowClient(uri)
                    found = self._client.get_experiment_by_name(experiment)
                if found is None and create:
                    found = self._client.get_experiment(self._create(experiment))
            if found is not None and found.lifecycle_stage == "deleted":
                raise ConfigError(
                    f"tracking.experiment: {experiment!r} was deleted in {uri}; restore it or choose another"
                )
            if found is None and not create:
                names = ", ".join(e.name for e in self._client.search_experiments())
                raise ConfigError(f"there is no experiment {experiment!r} in {uri}; it has: {names}")
            assert found is not None
            self.experiment_id = found.experiment_id
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise ConfigError(f"tracking.uri: {uri} can't be used: {error}") from error

    def _create(self, experiment: str) -> str:
        location = None
        if self.uri.startswith("sqlite:////"):  # beside the database, not in whatever folder the UI is started from
            location = (Path(self.uri.removeprefix("sqlite:///")).parent / "mlruns").as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}  # its pages are about runs, not about prompts
        return str(self._client.create_experiment(experiment, artifact_location=location, tags=kind))

    def start(
        self, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str], parent: str | None = None
    ) -> str:
        """Start a run, or complete one that was started with the same folder of checkpoints; returns its id.

        The latter is a run whose id was never written down: its process was killed, or MLflow's answer was lost.
        """
        from mlflow.entities import Param

        all_tags = {"mlflow.runName": name, **tags, **({"mlflow.parentRunId": parent} if parent else {})}
        run_id = self._find(tags.get(CHECKPOINT_TAG))
        if run_id is None:
            run_id = str(self._client.create_run(self.experiment_id, run_name=name, tags=all_tags).info.run_id)
        values = [Param(key, str(value)[:MAX_PARAMETER]) for key, value in parameters.items()]
        try:
            for i in range(0, len(values), 100):
                self._client.log_batch(run_id, params=values[i : i + 100])
        except BaseException as error:
            if CHECKPOINT_TAG not in tags or not (isinstance(error, Exception) and may_pass(error)):
                self.end(run_id, "FAILED")  # it would not be found again
            raise
        return run_id

    def _find(self, checkpoint: str | None) -> str | None:
        """The unfinished run with a folder of checkpoints."""
        if checkpoint is None:
            return None
        running = self._client.search_runs([self.experiment_id], "attributes.status = 'RUNNING'", max_results=50_000)
        found = [run.info.run_id for run in running if run.data.tags.get(CHECKPOINT_TAG) == checkpoint]
        return str(found[0]) if found else None

    def reopen(self, run_id: str) -> None:
        """Set a run to RUNNING again that was ended, or left open by a process that is gone."""
        self._client.update_run(run_id, status="RUNNING")

    def rounds_logged(self, run_id: str, metric: str = "cohort/size") -> set[int]:
        """The rounds that the run has a metric of."""
        return {point.step for point in self._client.get_metric_history(run_id, metric)}

    def log_round(self, run_id: str, round: int, metrics: Mapping[str, float], millis: int | None = None) -> None:
        """All metrics of a round in one call. Repeated with the same time (milliseconds since 1970) it changes nothing."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000) if millis is None else millis
        self._client.log_batch(run_id, metrics=[Metric(key, value, now, round) for key, value in metrics.items()])

    def log_dataset(
        self, run_id: str, name: str, digest: str, source: Mapping[str, Any], profile: Mapping[str, Any]
    ) -> None:
        """The data that a run trains and evaluates on, as MLflow's input; logged again it changes nothing.

        ``source`` and ``profile`` are what MLflow shows of where the data is from and how much of it there is.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest, "local", json.dumps(source), profile=json.dumps(profile))
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def set_view(self, value: str, means: str) -> None:
        """The saved views of the experiment's latest study: of its runs, and of the means over seeds."""
        self._client.set_experiment_tag(self.experiment_id, VIEW_TAG, value)
        self._client.set_experiment_tag(self.experiment_id, MEANS_TAG, means)

    def has_view(self) -> bool:
        return VIEW_TAG in self._client.get_experiment(self.experiment_id).tags

    def log_text(self, run_id: str, text: str, name: str) -> None:
        self._client.log_text(run_id, text, name)

    def log_files(self, run_id: str, files: Mapping[str, bytes], folder: str | None = None) -> None:
        with tempfile.TemporaryDirectory() as place:
            for name, data in files.items():
                (Path(place) / name).write_bytes(data)
            self._client.log_artifacts(run_id, place, folder)

    def log_arrays(self, run_id: str, arrays: Mapping[str, NDArray[Any]], name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            np.savez_compressed(Path(folder) / name, **dict(arrays))  # type: ignore[arg-type]
            self._client.log_artifact(run_id, str(Path(folder) / name))

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(run_id, key, value)

    def end(self, run_id: str, status: str) -> None:
        """End a run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._client.set_terminated(run_id, status)
