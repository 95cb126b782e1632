"""What all runs of a study have in common in MLflow: the store, the parent run, and how a run is opened and ended there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from raysim.analysis.comparison import compare, view_of
from raysim.analysis.table_formats import formatted
from raysim.config.loading import children, dump
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.events import RunStatus
from raysim.experiments.results import RunResult
from raysim.plots.palette import COLOURS
from raysim.storage.study_folder import StudyState
from raysim.tracking.dashboard import saved_view
from raysim.tracking.mlflow_store import MLflowStore
from raysim.tracking.outbox import Outbox
from raysim.tracking.run_description import clients_of, describe_study, differing, headline_of, title
from raysim.tracking.tags import CHECKPOINT_TAG, DESCRIPTION_TAG, study_tags
from raysim.views import ClientSet, View

END_SECONDS = 10  # to report the end of a run to MLflow, after which the run is left open there


class StudyLog:
    """A study in MLflow.

    Args:
        outbox: of the study; its runs have their own (``Outbox.for_run``).
        state: ``study.json``; the id of the parent run is written into it.
        notify: shows the user a message.
    """

    def __init__(self, store: MLflowStore, outbox: Outbox, state: StudyState, notify: Callable[[str], None]) -> None:
        self.store, self.outbox, self._state, self.notify = store, outbox, state, notify
        self._entries = list(dict.fromkeys(row.entry for row in state.runs))

    @property
    def commit(self) -> str | None:
        """The git commit of the repository in which the command was run."""
        return self._state.git_commit

    @property
    def experiment(self) -> str:
        """The name of the MLflow experiment."""
        return self._state.experiment

    @property
    def parent(self) -> str | None:
        """The id of the parent run."""
        return self._state.parent

    def colour(self, entry: str) -> str:
        """The colour of an entry in MLflow's charts, the same for all its seeds."""
        return COLOURS[self._entries.index(entry) % len(COLOURS)]

    # Any run.

    def open_run(
        self,
        outbox: Outbox,
        run_id: str | None,
        name: str,
        parameters: Mapping[str, Any],
        tags: Mapping[str, str],
        checkpoints: str | None,
        parent: str | None = None,
    ) -> str:
        """Reopen the run with this id, or start a new one; waits for an absent server, and returns the id.

        Raises:
            Stopped: the runs are to end.
        """
        if checkpoints is not None:
            tags = {**tags, CHECKPOINT_TAG: checkpoints}

        def reopen_or_start() -> str:
            if run_id is not None:
                self.store.reopen(run_id)
                return run_id
            return self.store.start(name, parameters, tags, parent)

        answer: str = outbox.ask(reopen_or_start)
        return answer

    def end_run(self, outbox: Outbox, run_id: str, status: RunStatus) -> None:
        """Close a run; if it is finished but MLflow refused some of its data, close it as FAILED."""
        if status == "FINISHED":
            outbox.put(lambda: self.store.end(run_id, "FAILED" if outbox.refused else "FINISHED"), in_any_case=True)
            return
        outbox.put(lambda: self.store.end(run_id, status), in_any_case=True)
        with suppress(ConfigError):  # what MLflow refuses is not why the run ended, or was raised already
            outbox.flush(END_SECONDS)

    # The parent run.

    def open_study(self, config: Config, runs: Sequence[Config], checkpoints: str | None) -> None:
        """Open the parent run, and save the view of the experiment that compares the study's runs."""
        parameters, tags = {"study.runs": len(runs)}, study_tags(config, self.commit)
        parent = self.open_run(self.outbox, self._state.parent, config.name, parameters, tags, checkpoints)
        self._state.parent = parent
        self.outbox.put(lambda: self.store.log_text(parent, dump(config), "config.yaml"))
        self._describe(describe_study(config, len(runs), self.commit, parent))
        name, model = f"latest study: {config.name}", headline_of(list(runs))
        view = saved_view(parent, name, differing(list(runs)), model)
        means = saved_view(parent, f"{name}, means over seeds", differing(list(runs)), model, means=True)
        self.outbox.put(lambda: self.store.set_view(view, means))

    def log_comparison(self, config: Config, results: Sequence[RunResult]) -> None:
        """The comparison of the runs that are finished, as a table and as pictures."""
        parent = self._state.parent
        assert parent is not None
        history = pd.concat([r.history for r in results], ignore_index=True)
        runs = dict(children(config))
        algorithms = {entry: child.algorithm.name for entry, child in runs.items()}
        asked = {"protocol"}  # every run has the numbers of both
        data = {e: c.data.model_dump_json() + c.evaluate.model_dump_json(exclude=asked) for e, c in runs.items()}
        view = view_of(history, headline_of(list(runs.values())), clients_of(list(runs.values())))
        accuracy = f"{view.model}_accuracy"
        clients = {(r.entry, r.seed): r.clients.assign(accuracy=r.clients[accuracy]) for r in results}
        everyone = ClientSet.asked("all", (c.data.num_clients for c in runs.values()))
        of_clients = View(view.model, everyone, view.rounds)
        table = formatted(compare(history, view.model), "markdown")
        self._describe(describe_study(config, len(self._state.runs), self.commit, parent, view, table))

        def draw() -> dict[str, bytes]:
            from raysim.analysis.artifacts import study_files  # not at the top: it imports matplotlib

            return study_files(history, clients, algorithms, data, title(config), view, of_clients)

        self.outbox.put(lambda: self.store.log_files(parent, draw_or_notify(draw, self.notify)))

    def end_study(self, status: RunStatus) -> None:
        """Close the parent run."""
        if self._state.parent is not None:
            self.end_run(self.outbox, self._state.parent, status)

    def _describe(self, text: str) -> None:
        parent = self._state.parent
        assert parent is not None
        self.outbox.put(lambda: self.store.set_tags(parent, {DESCRIPTION_TAG: text}))


def draw_or_notify(draw: Callable[[], dict[str, bytes]], notify: Callable[[str], None]) -> dict[str, bytes]:
    """Pictures; if they can't be drawn the user is told, and the run goes on."""
    try:
        return draw()
    except Exception as error:
        notify(f"the pictures can't be drawn: {error!r}")
        return {}
