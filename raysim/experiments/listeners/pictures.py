"""Pictures among a run's artifacts: who has which classes at its start, how clients did at its end."""

from __future__ import annotations

from collections.abc import Callable

from raysim.experiments.events import ActiveRun, RunListener
from raysim.experiments.results import RunResult
from raysim.experiments.study_log import draw_or_notify
from raysim.federation.rounds import FederatedRun
from raysim.tracking.mlflow_store import MLflowStore
from raysim.tracking.outbox import Outbox
from raysim.tracking.run_description import headline_of


class PictureListener(RunListener):
    """Draws in the outbox's thread, beside the rounds; the only thread that draws, since matplotlib is not thread-safe.

    Args:
        outbox: of the run.
        notify: shows the user a message: a picture can't be drawn.
    """

    def __init__(self, store: MLflowStore, outbox: Outbox, notify: Callable[[str], None]) -> None:
        self._store, self._outbox, self._notify = store, outbox, notify

    def started(self, run: ActiveRun) -> None:
        placed, config = run.placed, run.placed.config
        new = f"; the last {config.evaluate.new_clients} never take part" if config.evaluate.new_clients else ""
        title = f"{config.data.name}: samples per client and class{new}"

        def draw() -> dict[str, bytes]:
            from raysim.plots.partition import plot_partition  # not at the top: actors start while it is imported
            from raysim.plots.style import as_png

            return {"partition.png": as_png(plot_partition(placed.class_counts, placed.class_names, title))}

        self._log(str(run.state.run_id), draw)

    def finished(self, run: FederatedRun, result: RunResult) -> None:
        config, history, timeline = run.config, run.records.accuracy, run.timeline
        model = headline_of([config])

        def draw() -> dict[str, bytes]:
            from raysim.analysis.artifacts import drawn_rounds, run_files  # not at the top: it imports matplotlib

            evaluated = history.rounds(model)
            rounds = drawn_rounds(evaluated)
            table = history.table(model, config.data.num_clients, rounds)
            return run_files(config, rounds, len(evaluated), table, timeline)

        self._log(result.run_id, draw)

    def _log(self, run_id: str, draw: Callable[[], dict[str, bytes]]) -> None:
        self._outbox.put(lambda: self._store.log_files(run_id, draw_or_notify(draw, self._notify)))
