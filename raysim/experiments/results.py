"""The outcome of a run: its result, or a message about what went wrong."""

from __future__ import annotations

import html
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray
from numpy.typing import NDArray
from ray.exceptions import RayTaskError

from raysim.analysis.client_tables import client_table
from raysim.analysis.comparison import caption, compare
from raysim.errors import ClientError, ConfigError, WorkersLost
from raysim.experiments.callbacks.callback import CallbackError
from raysim.experiments.launch import PlacedRun
from raysim.storage.records import Records
from raysim.storage.study_folder import RunState
from raysim.views import MODELS, View


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    entry: str
    seed: int
    run_id: str
    history: pd.DataFrame
    clients: pd.DataFrame
    """A row per client after the last round: ``client``, ``personalized_accuracy``, ``aggregated_accuracy``, ``..._auc``,
    ``rounds`` after which that was, ``train_samples``, ``test_samples``, ``label_entropy``, ``domain``."""
    new_clients: pd.DataFrame | None
    """A row per client that never took part: accuracy ``before`` and ``after`` it adapted; None if there are none."""
    shared: NDArray[np.float32]
    checksums: dict[str, str]

    @classmethod
    def of(cls, placed: PlacedRun, state: RunState, records: Records, shared: NDArray[np.float32]) -> RunResult:
        """The result, built from the records and shared parameters of a run or of its last checkpoint."""
        entry, seed, run_id = placed.entry, placed.config.seed, str(state.run_id)
        tables = ray.get(placed.setup.partition), placed.class_counts, placed.domains
        rounds = records.rounds[-1].round + 1
        return cls(
            entry,
            seed,
            run_id,
            records.history(entry, seed, run_id),
            client_table(records.final, rounds, *tables),
            client_table(records.new, rounds, *tables) if records.new else None,
            shared,
            dict(state.checksums),
        )


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run, or all runs of a study.

    Attributes:
        runs: each with its history, table of clients, final shared parameters and checksums.
        history: a row per run and round: ``name``, ``seed``, ``run_id``, ``round`` (from 0), then every metric as in MLflow,
            but for what callbacks log.
        tracking_uri, experiment, parent_run_id: where it is logged; the parent run is None without a study.
        has_models: whether trained models are among the artifacts (``tracking.models``).
        view: what the accuracies in ``table`` are about: those of the last round.
    """

    runs: list[RunResult]
    history: pd.DataFrame
    tracking_uri: str
    experiment: str
    parent_run_id: str | None
    has_models: bool
    view: View

    @property
    def table(self) -> pd.DataFrame:
        """The comparison: a row per entry of the study, mean and standard deviation over seeds."""
        return compare(self.history, self.view.model)

    def plot(self) -> Any:
        """The comparison picture, a matplotlib figure: accuracy over rounds, megabytes sent and time, a line per entry."""
        from raysim.plots.curves import plot_comparison  # not at the top: it imports matplotlib

        title = f"{self.experiment}\n{MODELS[self.view.model]}, {self.view.clients}"
        return plot_comparison(self.history, self.view.metric("accuracy_mean"), title)

    def __repr__(self) -> str:
        return f"{caption(self.experiment, self.history, self.view)}\n\n{self.table.to_string(index=False)}"

    def _repr_html_(self) -> str:
        """The comparison with what it is about, for notebooks."""
        about = html.escape(caption(self.experiment, self.history, self.view))
        return f"<p><b>{about}</b></p>\n{self.table.to_html(index=False)}"


class StudyFailed(ClientError):
    """Some runs of a study failed; the others are finished.

    Attributes:
        by_clients: all of them by what their algorithm or clients did.
    """

    def __init__(self, runs: int, failures: dict[str, Exception]) -> None:
        causes = [error.cause if isinstance(error, RayTaskError) else error for error in failures.values()]
        self.by_clients = all(
            isinstance(e, ClientError) and not isinstance(e, CallbackError | WorkersLost) for e in causes
        )
        lines = [f"  {name}: {in_a_line(error)}" for name, error in failures.items()]
        others = "the others are finished; " if len(failures) < runs else ""
        super().__init__(
            "\n".join([f"{len(failures)} of {runs} runs failed:", *lines, f"{others}the same command tries again"])
        )


def in_a_line(error: Exception) -> str:
    """The first line of an error's message, or the last line of a traceback, which says what was wrong."""
    lines = error_message(error).strip().splitlines()
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def error_message(error: BaseException) -> str:
    """What a user needs to know about an error: its message, or the traceback if it is a bug."""
    if isinstance(error, RayTaskError):
        # Raised in an actor: its cause says what happened, Ray's own text would repeat it.
        return str(error.cause if isinstance(error.cause, ClientError) else error)
    if isinstance(error, ConfigError | ClientError):
        return str(error)
    return "".join(traceback.format_exception(error))
