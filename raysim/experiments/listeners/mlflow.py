"""MLflow: the run is opened there, its rounds, tables and results are logged, and its end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pandas as pd
import ray

from raysim.analysis.client_tables import split_sizes
from raysim.analysis.divergence import rejections
from raysim.config.loading import dump
from raysim.experiments.events import ActiveRun, RunListener, RunStatus
from raysim.experiments.launch import PlacedRun
from raysim.experiments.results import RunResult, in_a_line
from raysim.experiments.study_log import StudyLog
from raysim.federation.rounds import FederatedRun
from raysim.storage.records import RoundRecord
from raysim.storage.study_folder import RunState
from raysim.tracking.outbox import Outbox
from raysim.tracking.round_journal import RunJournal
from raysim.tracking.run_description import clients_of, describe_run
from raysim.tracking.tags import (
    DESCRIPTION_TAG,
    ENDED_EARLY_TAG,
    FAILURE_TAG,
    REJECTED_TAG,
    ROUNDS_TAG,
    checksum_tags,
    run_tags,
)


class MLflowListener(RunListener):
    """Logs a run to MLflow.

    Args:
        log: the study's log, with the store and the parent run.
        outbox: the outbox of this run.
        checkpoints: the URI of the run's folder of checkpoints, which resuming needs.
        journal: the file in which rounds are written down until MLflow has them; None without checkpoints.
        tags: additional tags.
    """

    def __init__(
        self, log: StudyLog, outbox: Outbox, checkpoints: str | None, journal: Path | None, tags: dict[str, str]
    ) -> None:
        self._log, self._outbox, self._checkpoints = log, outbox, checkpoints
        self._file, self._more_tags = journal, tags
        self._run_id: str | None = None
        self._journal: RunJournal | None = None

    def starts_over(self, state: RunState) -> None:
        if (old := state.run_id) is not None:
            self._outbox.put(lambda: self._log.store.end(old, "KILLED"))

    def started(self, run: ActiveRun) -> None:
        log, placed, store, config = self._log, run.placed, self._log.store, run.placed.config
        machine = run.machine
        tags = run_tags(
            config,
            log.commit,
            placed.entry,
            log.colour(placed.entry),
            placed.digests,
            machine.device,
            machine.device_name,
        )
        parameters = {**config.flat(), **_sizes(placed)}
        run_id = log.open_run(
            self._outbox,
            run.state.run_id,
            config.name,
            parameters,
            tags | self._more_tags,
            self._checkpoints,
            log.parent,
        )
        if run.state.run_id is not None:  # it goes on: whatever ended it before is over
            self._set_failure(run_id, "")
            self._outbox.put(lambda: store.set_tags(run_id, {ROUNDS_TAG: str(config.rounds)}))
            if run.checkpoint is None or not run.checkpoint.manifest.ends_early(config.rounds):
                self._outbox.put(lambda: store.set_tags(run_id, {ENDED_EARLY_TAG: ""}))
        self._run_id = run.state.run_id = run_id
        before = run.checkpoint.records.rounds if run.checkpoint is not None else ()
        self._journal = RunJournal(store, self._outbox, run_id, self._file, run.resumed, before, log.notify)
        self._outbox.put(lambda: store.log_text(run_id, dump(config), "config.yaml"))
        self._describe(run_id, describe_run(config, log.commit, run_id))
        source, profile, name = config.data.model_dump(mode="json"), _profile(placed), config.data.name
        for of in (run_id, *([log.parent] if log.parent is not None else [])):
            self._outbox.put(partial(store.log_dataset, of, name, placed.digests["data"], source, profile))

    def completed(self, record: RoundRecord) -> None:
        assert self._journal is not None
        self._journal.add(record)

    def between_rounds(self, run: FederatedRun) -> None:
        self._outbox.check()

    def finished(self, run: FederatedRun, result: RunResult) -> None:
        store, run_id, config = self._log.store, result.run_id, run.config
        records, left_out = run.records, run.records.left_out()
        tables: dict[str, pd.DataFrame | None] = {
            "clients.csv": result.clients,
            "new_clients.csv": result.new_clients,
            "timeline.csv": run.timeline,
            "left_out.csv": left_out if len(left_out) else None,
        }
        files = {name: table.to_csv(index=False).encode() for name, table in tables.items() if table is not None}
        self._outbox.put(lambda: store.log_files(run_id, files))
        about, num_clients = str(clients_of([config])), config.data.num_clients
        self._outbox.put(lambda: store.log_arrays(run_id, records.accuracy_tables(about, num_clients), "accuracy.npz"))
        rejected = rejections(result.history)
        tags = checksum_tags(result.checksums) | {REJECTED_TAG: rejected[0] if rejected else ""}
        self._outbox.put(lambda: store.set_tags(run_id, tags))
        last = records.rounds[-1]
        if run.rounds < config.rounds:  # it ended early
            self._outbox.put(lambda: store.set_tags(run_id, {ROUNDS_TAG: str(run.rounds)}))
        self._describe(run_id, describe_run(config, self._log.commit, run_id, last))

    def ended(self, status: RunStatus, error: BaseException | None = None) -> None:
        if self._run_id is not None:
            if status == "FAILED" and isinstance(error, Exception):
                self._set_failure(self._run_id, in_a_line(error)[:500])
            self._log.end_run(self._outbox, self._run_id, status)

    def _set_failure(self, run_id: str, reason: str) -> None:
        self._outbox.put(lambda: self._log.store.set_tags(run_id, {FAILURE_TAG: reason}))

    def _describe(self, run_id: str, text: str) -> None:
        self._outbox.put(lambda: self._log.store.set_tags(run_id, {DESCRIPTION_TAG: text}))


def _sizes(placed: PlacedRun) -> dict[str, int]:
    return {
        "model.shared_parameters": placed.layout.num_shared,
        "model.personal_parameters": placed.layout.num_personal,
        "model.state_parameters": placed.state_size,
    }


def _profile(placed: PlacedRun) -> dict[str, int]:
    """How much data there is."""
    partition = ray.get(placed.setup.partition)
    samples = {f"{split}_samples": int(sizes.sum()) for split, sizes in split_sizes(partition).items()}
    config, classes = placed.config, len(placed.class_names)
    who = {"clients": config.data.num_clients, "new_clients": config.evaluate.new_clients}
    return {**samples, "classes": classes, **who}
