"""One run of a study, from its start or its last checkpoint to its end.

What a lost node leaves is handled here: the run goes back to its last checkpoint, and on.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
from numpy.typing import NDArray

from raysim.storage.checkpoint import Checkpoint, newest
from raysim.config.loading import dump
from raysim.tracking.description import describe_run
from raysim.errors import ConfigError, StatesLost
from raysim.tracking.journal import RunJournal
from raysim.experiments.keeper import Keeper
from raysim.models import saved
from raysim.workers.node_states import StateNodes
from raysim.plots.palette import COLOURS
from raysim.experiments.preparation import RunSpec, with_config
from raysim.storage.records import Records, client_table
from raysim.federation.rounds import RoundReport, Run
from raysim.experiments.study import RunResult, Study, versions
from raysim.storage.study_folder import RunState, differences
from raysim.tracking.mlflow_store import COLOUR_TAG, DESCRIPTION_TAG

if TYPE_CHECKING:
    from raysim.workers.actor_pool import ActorPool


SOURCES = {"data": "the data set", "algorithm": "the code of the algorithm"}


class Attempt:
    """One run of a study with one size of client batches."""

    def __init__(self, study: Study, i: int, spec: RunSpec, pool: ActorPool, tags: dict[str, str]) -> None:
        self._study, self._i, self._spec, self._pool, self._more_tags = study, i, spec, pool, tags
        self._row: RunState = study.state.runs[i]
        self._outbox, self._tracker, self._say = study.outbox.beside(self._row.name), study.tracker, study.say
        self._folder = study.folder.of(self._row) if study.folder is not None else None
        self._machine: dict[str, str] = {}
        self._journal: RunJournal | None = None

    def execute(self) -> None:
        """Raises ConfigError if it would go on with a change that changes its results; and what ``Run`` raises."""
        if self._row.finished:
            checkpoint = self._last()
            if checkpoint is not None and checkpoint.manifest.round == self._spec.config.rounds:
                self._refuse_other(checkpoint)
                self._say(f"{self._row.name}: finished before")
                self._study.finished(self._i, self._result(checkpoint.records, checkpoint.shared))
                return
        self._row.finished = False
        with ExitStack() as stack:
            done = False
            while not done:
                try:
                    self._go(stack)
                    done = True
                except StatesLost as error:
                    self._say(f"{self._row.name}: {error}; back to the last checkpoint")
        self._outbox.put(self._all_is_logged)

    def _all_is_logged(self) -> None:
        """Written down only when MLflow has it: whoever goes on with the study logs it again otherwise."""
        self._row.finished = True
        self._study.write_state()

    def _go(self, stack: ExitStack) -> None:
        """From the last checkpoint to the end; ``stack`` gets what is to be done when the run is over, however it ends."""
        checkpoint = self._last()
        if checkpoint is not None:
            self._refuse_other(checkpoint)
        elif self._journal is None:
            self._as_begun()
        states = StateNodes(self._spec.state_size)
        try:
            self._machine = self._pool.configure(self._spec.setup, states)
            facts = self._facts()
            if checkpoint is not None:
                self._tell_changes(checkpoint, facts)
            if self._journal is None:
                self._journal = self._open(checkpoint, stack)
            spec = self._spec

            def report(report: RoundReport) -> None:
                self._study.report(self._i, report)

            run = Run(spec.setup, spec.layout, self._pool, states, report, checkpoint)
            self._to_the_end(run, self._journal, facts, checkpoint)
        finally:
            states.close()

    # Where it starts.

    def _last(self) -> Checkpoint | None:
        if self._folder is None:
            return None
        checkpoint, problems = newest(self._folder)
        for problem in problems:
            self._say(f"{self._row.name}: a checkpoint is not used: {problem}")
        if checkpoint is not None and not self._row.finished:
            self._say(f"{self._row.name}: goes on after round {checkpoint.manifest.round}")
        return checkpoint

    def _as_begun(self) -> None:
        """Rounds that are in MLflow already, but in no checkpoint, are played again: with the same bits, or in a new run."""
        began = self._row.facts
        if not began:
            return
        self._spec = self._with_batches_of(int(began["clients_per_batch"]))
        changed = [what for key, what in SOURCES.items() if began[key] != self._begins_with()[key]]
        if changed:
            old = self._row.run_id
            self._say(
                f"{self._row.name}: {' and '.join(changed)} is not what it was, and there is no checkpoint yet: the run "
                "starts anew, as another one in MLflow"
            )
            if old is not None:
                self._outbox.put(lambda: self._tracker.end(old, "KILLED"))
            self._study.forget(self._i)

    def _with_batches_of(self, size: int) -> RunSpec:
        """With the ``clients_per_batch`` that raysim chose when the run began."""
        if not self._spec.may_vectorise:
            return self._spec
        resources = self._spec.config.resources.model_copy(update={"clients_per_batch": size})
        return with_config(self._spec, self._spec.config.model_copy(update={"resources": resources}))

    def _sources(self) -> dict[str, str]:
        """What results depend on besides the configuration, as far as the user decides it."""
        return {"data": self._spec.dataset_digest, "algorithm": self._spec.setup.code}

    def _begins_with(self) -> dict[str, str]:
        return {**self._sources(), "clients_per_batch": str(self._spec.config.resources.clients_per_batch)}

    def _facts(self) -> dict[str, str]:
        return {**self._sources(), "device": self._machine["device_name"], **versions()}

    def _refuse_other(self, checkpoint: Checkpoint) -> None:
        """Raises ConfigError if the run would go on with another configuration, other data or another algorithm."""
        self._spec = self._with_batches_of(checkpoint.manifest.config.get("resources", {}).get("clients_per_batch"))
        found = differences(checkpoint.manifest.config, self._spec.config.model_dump(mode="json"))
        for key, value in self._sources().items():
            if checkpoint.manifest.facts.get(key) != value:
                found.append(f"{SOURCES[key]} is not what it was")
        if found:
            raise ConfigError(
                *(f"{checkpoint.folder.uri}/{checkpoint.name}: {line}" for line in found),
                "the run can't go on with changes that change its results; start anew with `raysim run --fresh`",
            )

    def _tell_changes(self, checkpoint: Checkpoint, facts: dict[str, str]) -> None:
        old = checkpoint.manifest.facts
        for key in facts.keys() - self._sources().keys():
            if old.get(key) != facts[key]:
                self._say(f"{self._row.name}: {key} was {old.get(key)}, is {facts[key]}: bits may differ from here on")

    def _open(self, checkpoint: Checkpoint | None, stack: ExitStack) -> RunJournal:
        """The run in MLflow, new or opened again."""
        study, spec, config = self._study, self._spec, self._spec.config
        parameters = {**config.flat(), **_sizes(spec)}
        tags = {**study.tags(config, self._machine), **self._more_tags}
        tags |= {"raysim.entry": spec.entry, "raysim.dataset_digest": spec.dataset_digest}
        entries = list(dict.fromkeys(row.entry for row in study.state.runs))
        tags[COLOUR_TAG] = COLOURS[entries.index(spec.entry) % len(COLOURS)]  # one for all seeds of an entry
        parent, folder = study.state.parent, self._folder.uri if self._folder is not None else None

        def start() -> str:
            return self._tracker.start(config.name, parameters, tags, parent)

        resumed = study.goes_on or checkpoint is not None
        run_id = self._row.run_id = study.started(self._outbox, self._row.run_id, folder, start, tags)
        self._row.facts = self._begins_with()
        study.write_state()
        stack.enter_context(study.ending(self._outbox, run_id))
        file = study.folder.journal(self._row, Path(study.job.home)) if study.folder is not None else None
        before = checkpoint.records.rounds if checkpoint is not None else ()
        journal = RunJournal(self._tracker, self._outbox, run_id, file, resumed, before, self._say)
        self._outbox.put(lambda: self._tracker.log_text(run_id, dump(config), "config.yaml"))
        source, profile = config.data.model_dump(mode="json"), self._profile()
        about = {DESCRIPTION_TAG: describe_run(config, study.state.git_commit, run_id)}
        self._outbox.put(lambda: self._tracker.set_tags(run_id, about))
        digest, log = spec.dataset_digest, self._tracker.log_dataset
        for of in (run_id, *([parent] if parent is not None else [])):
            self._outbox.put(partial(log, of, config.data.name, digest, source, profile))
        from raysim.plots import as_png, plot_partition  # not at the top: actors start while matplotlib is imported

        title = f"{config.data.name}: samples per client and class"
        new = f"; the last {config.evaluate.new_clients} never take part" if config.evaluate.new_clients else ""

        def draw() -> None:
            def picture() -> dict[str, bytes]:
                return {"partition.png": as_png(plot_partition(spec.class_counts, spec.class_names, title + new))}

            self._tracker.log_files(run_id, study.drawn(picture))

        self._outbox.put(draw)
        return journal

    def _profile(self) -> dict[str, int]:
        """How much data there is."""
        partition = ray.get(self._spec.setup.partition)
        train, test = int(partition.num_train.sum()), int(partition.num_test.sum())
        config, classes = self._spec.config, len(self._spec.class_names)
        who = {"clients": config.data.num_clients, "new_clients": config.evaluate.new_clients}
        return {"train_samples": train, "test_samples": test, "classes": classes, **who}

    # Its rounds.

    def _to_the_end(self, run: Run, journal: RunJournal, facts: dict[str, str], since: Checkpoint | None) -> None:
        keeper = None
        if self._folder is not None:
            keeper = Keeper(run, self._folder, self._row.name, facts, since, self._say, self._study.made_progress)
        try:
            while run.next_round < run.config.rounds:
                for record in run.round():
                    journal.add(record)
                self._outbox.check()
                self._study.after_a_round()
                if keeper is not None:
                    keeper.after_a_round()
            for record in run.finish():
                journal.add(record)
            self._row.checksums = run.checksums()
            if keeper is not None:
                keeper.at_the_end()
        finally:
            if keeper is not None:
                keeper.writer.close()
        result = self._result(run.records, run.shared.numpy())
        self._log_results(run, result)
        self._study.finished(self._i, result)

    def _log_results(self, run: Run, result: RunResult) -> None:
        run_id, tracker = result.run_id, self._tracker
        from raysim.analysis.summary import run_files  # not at the top: actors start while matplotlib is imported

        left_out, accuracy = run.records.left_out(), run.records.accuracy_table(run.config.data.num_clients)
        config, timeline = run.config, run.timeline
        tables = {"clients.csv": result.clients, "new_clients.csv": result.new_clients, "timeline.csv": run.timeline}
        tables["left_out.csv"] = left_out if len(left_out) else None
        files = {name: table.to_csv(index=False).encode() for name, table in tables.items() if table is not None}
        # Drawn in the outbox's thread, beside the rounds of the next run; the only one that draws.
        drawn = self._study.drawn
        self._outbox.put(
            lambda: tracker.log_files(run_id, drawn(lambda: run_files(config, accuracy, timeline)) | files)
        )
        self._outbox.put(lambda: tracker.log_arrays(run_id, accuracy, "accuracy.npz"))
        tags = {f"checksum.{name}": value for name, value in result.checksums.items()}
        commit, last = self._study.state.git_commit, run.records.rounds[-1].metrics
        tags[DESCRIPTION_TAG] = describe_run(config, commit, run_id, last)
        self._outbox.put(lambda: tracker.set_tags(run_id, tags))
        if models := self._models(run):
            self._outbox.put(lambda: tracker.log_files(run_id, models, saved.FOLDER))

    def _models(self, run: Run) -> dict[str, bytes]:
        """The trained models as files, as far as they are asked for."""
        asked, spec = run.config.tracking.models, self._spec
        if asked == "none":
            return {}
        size = 4 * run.num_states * run.state_size
        with_states = asked == "all" or (asked == "auto" and size <= saved.MOST_BYTES)
        sent, clients, states, initial = run.models(with_states)
        files = {
            "about.json": saved.about_file(run.config, spec.class_names, spec.setup.in_channels),
            "shared.safetensors": saved.shared_file(sent, spec.layout, ray.get(spec.setup.frozen)),
        }
        if with_states:
            rows = {name: value.numpy() for name, value in states.items()}
            files["personal.safetensors"] = saved.personal_file(clients, rows, initial)
        elif asked == "auto":
            self._say(
                f"{self._row.name}: the states of {run.num_states:,} clients are {size / 1e9:.1f} GB: they are not among the "
                "artifacts, unless tracking.models=all"
            )
        return files

    def _result(self, records: Records, shared: NDArray[np.float32]) -> RunResult:
        spec, run_id = self._spec, str(self._row.run_id)
        entry, seed, partition = spec.entry, spec.config.seed, ray.get(spec.setup.partition)
        clients = client_table(records.final, partition, spec.class_counts, spec.domains)
        new = client_table(records.new, partition, spec.class_counts, spec.domains) if records.new else None
        history = records.history(entry, seed, run_id)
        return RunResult(entry, seed, run_id, history, clients, new, shared, dict(self._row.checksums))


def _sizes(spec: RunSpec) -> dict[str, int]:
    return {
        "model.shared_parameters": spec.layout.num_shared,
        "model.personal_parameters": spec.layout.num_personal,
        "model.state_parameters": spec.state_size,
    }
