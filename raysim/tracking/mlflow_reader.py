"""Reads MLflow: finished runs for comparisons, with the accuracy of every client; a run's artifacts; its checkpoints."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raysim.errors import ConfigError
from raysim.tracking.mlflow_store import MLflowStore, check_store, few_retries
from raysim.tracking.tags import CHECKPOINT_TAG, ENDED_EARLY_TAG, FAILURE_TAG, ROUNDS_TAG, TUNED_TAG
from raysim.views import MODELS, Model


def checkpoint_of(uri: str, run_id: str) -> str:
    """The folder of a run's checkpoints.

    Raises:
        ConfigError: there is no such run, or it has none.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    if uri.startswith("sqlite:////") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ConfigError(
            f"there is no folder {run_id}, and no MLflow store {uri} with such a run (--uri names another)"
        )
    try:
        with few_retries():
            tags = MlflowClient(uri).get_run(run_id).data.tags
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ConfigError(f"there is no folder {run_id}, and no such run in {uri}: {error}") from error
    if CHECKPOINT_TAG not in tags:
        raise ConfigError(f"run {run_id} has no checkpoints (checkpoint.every was null, or it is not a run of raysim)")
    return str(tags[CHECKPOINT_TAG])


def artifacts(uri: str, run_id: str, folder: str, into: Path) -> Path:
    """A folder of a run's artifacts, on this machine.

    Raises:
        ConfigError: there is no such run, or it has no such folder.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    check_store(uri)
    try:
        with few_retries():
            client = MlflowClient(uri)
            run = client.get_run(run_id)
            if run.data.tags.get("raysim.kind") == "study":
                found = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
                children = [f"\n  {child.info.run_id}  {child.info.run_name}" for child in reversed(found)]
                raise ConfigError(f"{run_id} is a study; name one of its runs:{''.join(children)}")
            if not client.list_artifacts(run_id, folder):
                raise ConfigError(
                    f"run {run_id} has no artifacts {folder!r} (tracking.models: none, or it has not finished)"
                )
            return Path(client.download_artifacts(run_id, folder, str(into)))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ConfigError(f"{run_id}: no such run in {uri}, or its artifacts can't be had: {error}") from error


def table(uri: str, run_id: str, name: str) -> pd.DataFrame | None:
    """A CSV file among a run's artifacts; None if it has no such file.

    Raises:
        ConfigError: there is no such run.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    check_store(uri)
    try:
        with few_retries(), tempfile.TemporaryDirectory() as folder:
            client = MlflowClient(uri)
            if name not in {file.path for file in client.list_artifacts(run_id)}:
                return None
            file = client.download_artifacts(run_id, name, folder)
            # As it was written: the same numbers (the other engine rounds), and a domain may be called "NA", or nothing.
            numbers = {column: [""] for column in pd.read_csv(file, nrows=0).columns if column != "domain"}
            return pd.read_csv(file, engine="python", keep_default_na=False, na_values=numbers)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ConfigError(f"{run_id}: no such run in {uri}, or its artifacts can't be had: {error}") from error


def _ended_early(run: Any) -> bool:
    """Whether it was to have more rounds than it has: that its seeds have others is no difference of settings."""
    return bool(run.data.tags.get(ENDED_EARLY_TAG))


class FinishedRuns(MLflowStore):
    """The finished runs of an experiment's latest study, unless others are chosen.

    Raises:
        ConfigError: there is no such store or experiment.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        super().__init__(uri, experiment, create=False)
        self._runs: list[Any] | None = None

    def latest_study(self) -> pd.DataFrame:
        """The history of the finished runs of the latest study, as ``Result.history``; of the latest run if there is none.

        Raises:
            ConfigError: the experiment has no finished run.
        """
        return pd.concat([self._history(run) for run in self._latest_runs()], ignore_index=True)

    def started(self) -> str:
        """When the first of these runs was started, as a text."""
        millis = min(run.info.start_time for run in self._latest_runs())
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(millis / 1000))

    def missing(self) -> list[str]:
        """The runs of these runs' studies that have not finished, each with its status and reason, as texts.

        A run that started over, with smaller client batches or without its checkpoint, left another one of its name
        behind; only the last one of a name counts.
        """
        texts = []
        shown = {run.data.tags.get("mlflow.parentRunId") for run in self._latest_runs()} - {None}
        everything = self._all()
        for parent in (run for run in everything if run.info.run_id in shown):
            children = (run for run in everything if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id)
            last = {run.info.run_name: run for run in children}
            for name, run in last.items():
                if run.info.status != "FINISHED":
                    reason = run.data.tags.get(FAILURE_TAG)
                    texts.append(f"{name}, {run.info.status}" + (f" ({reason})" if reason else ""))
            if (never := int(parent.data.params.get("study.runs", len(last))) - len(last)) > 0:
                texts.append(f"{never} {'run' if never == 1 else 'runs'} of the study that never started")
        return texts

    def tuned_with(self) -> str:
        """The budget that these runs' study was tuned with, in words; empty if it is no such study."""
        parents = {run.data.tags.get("mlflow.parentRunId") for run in self._latest_runs()}
        found = [run.data.tags.get(TUNED_TAG, "") for run in self._all() if run.info.run_id in parents]
        return next(filter(None, found), "")

    def parameters(self) -> dict[str, dict[str, str]]:
        """Run id to dotted parameters, of the runs of ``latest_study``.

        ``dataset``, ``partition`` and ``code`` are the digests of the samples, of their division among clients, and of the
        algorithm's source; empty for runs that have none.
        """
        digests = {"dataset": "dataset", "partition": "partition", "code": "algorithm"}
        return {
            run.info.run_id: {
                **run.data.params,
                **(
                    {"rounds": run.data.tags[ROUNDS_TAG]}
                    if ROUNDS_TAG in run.data.tags and not _ended_early(run)
                    else {}
                ),
                **{key: run.data.tags.get(f"raysim.{name}_digest", "") for key, name in digests.items()},
            }
            for run in self._latest_runs()
        }

    def client_accuracy(self, run_id: str, model: Model, rounds: Sequence[int]) -> NDArray[np.float64]:
        """(N,): a client's mean accuracy over these rounds, the same for all; NaN if one of them did not evaluate it.

        Raises:
            ConfigError: the run has no such artifact, or it has no such round.
        """
        known, accuracy = self.accuracy_table(run_id, model)
        if missing := sorted(set(rounds) - set(known.tolist())):
            raise ConfigError(f"run {run_id}: accuracy.npz has no round {missing[0] + 1}, which MLflow has metrics of")
        mean: NDArray[np.float64] = accuracy[np.isin(known, rounds)].astype(np.float64).mean(axis=0)
        return mean

    def accuracy_table(self, run_id: str, model: Model) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The evaluated rounds (E,), and the accuracy (E, N) of every client in them, NaN where it was not evaluated.

        Raises:
            ConfigError: the run has no such artifact, or that of an earlier version.
        """
        with self._artifact(run_id, "accuracy.npz") as path, np.load(path, allow_pickle=False) as file:
            if model not in file:
                raise ConfigError(f"run {run_id}: accuracy.npz has no accuracies {MODELS[model]}: an earlier version's")
            return file["rounds"], file[model]

    def clients(self, run_id: str) -> pd.DataFrame:
        """The table of clients after the last round.

        Raises:
            ConfigError: the run has no such artifact.
        """
        with self._artifact(run_id, "clients.csv") as path:
            return pd.read_csv(path)

    @contextmanager
    def _artifact(self, run_id: str, name: str) -> Iterator[str]:
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self._client.download_artifacts(run_id, name, folder)
            except (MlflowException, OSError) as error:
                raise ConfigError(f"run {run_id} has no artifact {name}: {error}") from error
            yield path

    def choose(self, run_ids: Sequence[str]) -> None:
        """Use these runs in place of the latest study; the id of a study stands for all its finished runs.

        Raises:
            ConfigError: one is not a finished run of the experiment.
        """
        chosen: dict[str, Any] = {}
        for asked in run_ids:
            runs = [r for r in self._finished() if asked in (r.info.run_id, r.data.tags.get("mlflow.parentRunId"))]
            if not runs:
                raise ConfigError(f"--run {asked}: is no finished run or study of the experiment {self.experiment!r}")
            chosen |= {run.info.run_id: run for run in runs}
        self._runs = list(chosen.values())

    def _finished(self) -> list[Any]:
        """Finished runs of raysim, oldest first; without the tag it is a study's parent, or somebody else's run."""
        return [run for run in self._all() if run.info.status == "FINISHED" and "raysim.entry" in run.data.tags]

    def _all(self) -> list[Any]:
        """Everything in the experiment, oldest first."""
        return list(
            self._client.search_runs([self.experiment_id], order_by=["attributes.start_time ASC"], max_results=50_000)
        )

    def _latest_runs(self) -> list[Any]:
        if self._runs is None:
            self._runs = self._find_latest_runs()
        return self._runs

    def _find_latest_runs(self) -> list[Any]:
        found = self._finished()
        # A single run after a study was probably only a trial; it must be chosen explicitly.
        found = [run for run in found if "mlflow.parentRunId" in run.data.tags] or found
        groups: dict[str, list[Any]] = {}
        for run in found:
            groups.setdefault(run.data.tags.get("mlflow.parentRunId", run.info.run_id), []).append(run)
        if not groups:
            raise ConfigError(f"the experiment {self.experiment!r} has no finished run of raysim")
        ended = {group: max(run.info.end_time for run in runs) for group, runs in groups.items()}
        return groups[max(ended, key=lambda group: ended[group])]

    def _history(self, run: Any) -> pd.DataFrame:
        columns = {}
        for key in run.data.metrics:
            points = self._client.get_metric_history(run.info.run_id, key)
            columns[key] = pd.Series({point.step: point.value for point in points})
        table = pd.DataFrame(columns).rename_axis("round").reset_index()
        table.insert(0, "name", run.data.tags["raysim.entry"])
        table.insert(1, "seed", int(run.data.params["seed"]))
        table.insert(2, "run_id", run.info.run_id)
        return table
