"""The trained models among a run's artifacts, as far as ``tracking.models`` asks for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import ray

from raysim.experiments.events import ActiveRun, RunListener
from raysim.experiments.launch import PlacedRun
from raysim.experiments.results import RunResult
from raysim.federation.rounds import FederatedRun
from raysim.models import saved
from raysim.tracking.mlflow_store import MLflowStore
from raysim.tracking.outbox import Outbox

CHUNK = 256  # clients


class ModelListener(RunListener):
    """Saves the shared parameters and the clients' states at the end of a run.

    Args:
        outbox: of the run.
        notify: tells the user when the states are too large to be saved by default.
    """

    def __init__(self, store: MLflowStore, outbox: Outbox, notify: Callable[[str], None]) -> None:
        self._store, self._outbox, self._notify = store, outbox, notify
        self._placed: PlacedRun | None = None
        self._name = ""

    def started(self, run: ActiveRun) -> None:
        self._placed, self._name = run.placed, run.state.name

    def finished(self, run: FederatedRun, result: RunResult) -> None:
        if files := self._files(run):
            self._outbox.put(lambda: self._store.log_files(result.run_id, files, saved.FOLDER))

    def _files(self, run: FederatedRun) -> dict[str, bytes]:
        asked, placed, states = run.config.tracking.models, self._placed, run.states
        assert placed is not None
        if asked == "none":
            return {}
        algorithm = run.config.algorithm
        # Then every client may have another model, trained or not.
        told = algorithm.has_own("server_messages") and algorithm.told_in_evaluation
        clients = np.arange(run.config.data.num_clients) if told else states.trained
        one = {name: rows[0] for name, rows in run.messages(np.zeros(1, np.int64)).items()} if told else {}
        size = 4 * len(clients) * (states.layout.size + sum(message.numel() for message in one.values()))
        with_states = asked == "all" or (asked == "auto" and size <= saved.MOST_BYTES)
        files = {
            "about.json": saved.about_file(
                run.config, run.rounds, placed.class_names, placed.setup.in_channels, placed.digests
            ),
            "shared.safetensors": saved.shared_file(run.sent(), placed.layout, ray.get(placed.setup.frozen)),
        }
        if with_states:
            rows = {name: value.numpy() for name, value in states.named(states.index.addresses[clients]).items()}
            if told:  # some at a time: the server reads a row of each for it
                chunks = [run.messages(ids) for ids in np.split(clients, range(CHUNK, len(clients), CHUNK))]
                rows |= {name: np.concatenate([chunk[name].numpy() for chunk in chunks]) for name in one}
            files["personal.safetensors"] = saved.personal_file(clients, rows, {**states.initial(), **one})
        elif asked == "auto":
            self._notify(
                f"{self._name}: the states of {len(clients):,} clients are {size / 1e9:.1f} GB: they are not among "
                "the artifacts, unless tracking.models=all"
            )
        return files
