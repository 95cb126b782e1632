"""The results of runs that are finished, from what they left behind: their last checkpoints, and their tables in MLflow."""

from __future__ import annotations

import pandas as pd

from raysim.analysis.comparison import view_of
from raysim.config.loading import children, config_of
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.results import Result, RunResult
from raysim.storage.checkpoint import newest
from raysim.storage.study_folder import RunState, StudyFolder, StudyState
from raysim.tracking.mlflow_reader import table
from raysim.tracking.run_description import clients_of, headline_of


def finished_results(folder: StudyFolder, state: StudyState) -> Result:
    """The same as the command returned that ran them; needs no cluster and no data.

    Raises:
        ConfigError: a run has lost its last checkpoint, or MLflow can't be asked for its tables.
    """
    configs = [child for _, child in children(config_of(state.config, [], "study.json"))]
    results = [_of(folder, state, run, config) for run, config in zip(state.runs, configs, strict=True)]
    history = pd.concat([result.history for result in results], ignore_index=True)
    has_models = state.config["tracking"]["models"] != "none"
    view = view_of(history, headline_of(configs), clients_of(configs))
    return Result(results, history, state.tracking_uri, state.experiment, state.parent, has_models, view)


def _of(folder: StudyFolder, state: StudyState, run: RunState, config: Config) -> RunResult:
    checkpoint, _ = newest(folder.of(run))
    if checkpoint is None or not checkpoint.manifest.is_last_of(config.rounds) or run.run_id is None:
        raise ConfigError(
            f"{folder.of(run).uri}: {run.name} is finished, but its last checkpoint is not there or damaged; its numbers are "
            f"in MLflow: raysim compare {state.experiment} --uri {state.tracking_uri}"
        )
    clients, new_clients = (table(state.tracking_uri, run.run_id, f"{name}.csv") for name in ("clients", "new_clients"))
    if clients is None:
        raise ConfigError(f"MLflow run {run.run_id} in {state.tracking_uri} has no clients.csv")
    history = checkpoint.records.history(run.entry, config.seed, run.run_id)
    shared = checkpoint.shared
    return RunResult(run.entry, config.seed, run.run_id, history, clients, new_clients, shared, dict(run.checksums))
