"""What a person sees while runs are under way: a live view on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from raysim.views import FAMILIES, MODELS

if TYPE_CHECKING:
    from raysim.experiments.status import Status
    from raysim.storage.records import RoundRecord

MOST_ROWS = 12  # of the table of a study's runs
FIRST = {"running": 0, "failed": 1, "finished": 2, "waiting": 3}
MARKS = {"running": ("▶", "cyan"), "failed": ("✗", "red"), "waiting": ("·", "dim"), "finished": ("✓", "green")}


class ProgressView:
    """Call it with every status; use it as a context manager.

    Args:
        draw: shows the live view in another place than ``console``, which then gets messages only.
    """

    def __init__(self, console: Console, draw: Callable[[RenderableType], None] | None = None) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=5, transient=True)
        self._in_console = draw is None and console.is_terminal
        self._draw = draw if not self._in_console else self._live.update
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=300,
        )
        self._task = self._bars.add_task("")
        self._start = time.monotonic()
        self._rounds: dict[int, RoundRecord] = {}
        """The last complete round of each run."""
        self._shown: set[tuple[int, int]] = set()

    def __enter__(self) -> ProgressView:
        if self._in_console:
            self._live.start()
        if self._draw is not None:
            self._draw(Spinner("dots", Text("starting Ray and its actors")))
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_console:
            self._live.stop()

    def __call__(self, status: Status, names: list[str], rounds: list[int]) -> None:
        """``names`` and numbers of ``rounds`` of all runs, in the order in which they run."""
        for event in status.events:
            if isinstance(event, str):
                self._console.print(event, style="yellow", highlight=False, soft_wrap=True)
            else:
                self._completed(event.run, event.record, names, rounds)
        if self._draw is not None and any(phase != "waiting" for phase in status.phases):
            self._draw(self._view(status, names, rounds))

    def _completed(self, run: int, record: RoundRecord, names: list[str], rounds: list[int]) -> None:
        """Show a round once only: rounds since a checkpoint may be repeated."""
        if (run, record.round) in self._shown:
            return
        self._shown.add((run, record.round))
        self._rounds[run] = record
        where = f"{names[run]}: round {record.round + 1} of {rounds[run]}"
        if record.rejected:
            ids = ", ".join(map(str, record.rejected))
            line = f"{where}: rejected client {ids}: its parameters were not finite or out of range"
            self._console.print(line, style="yellow", highlight=False)
        if self._draw is None:
            passed = time.monotonic() - self._start
            self._console.print(f"[{passed:6.1f} s] {where}: {summary(record.metrics)}", highlight=False)

    def _view(self, status: Status, names: list[str], rounds: list[int]) -> Group:
        """All rounds of all runs as one bar with the time that is left; the runs; what the actors do."""
        done = sum(self._done(i, status, rounds) for i in range(len(status.phases)))
        finished = sum(phase == "finished" for phase in status.phases)
        runs = f"{finished} of {len(names)} runs" if len(names) > 1 else names[0]
        self._bars.update(self._task, description=f"{runs}, rounds", completed=done, total=sum(rounds))
        running = [p for i, p in status.progress.items() if status.phases[i] == "running"]
        batches = f"client batches {sum(p.tasks_done for p in running)} of {sum(p.tasks for p in running)}"
        actors = [
            Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True) for p in running for line in p.running
        ]
        table = [self._table(status, names, rounds)] if len(names) > 1 else []
        note = [Text(summary(self._rounds[0].metrics))] if len(names) == 1 and self._rounds else []
        return Group(self._bars, *note, *table, Text(batches, style="dim"), *actors[:8])

    def _table(self, status: Status, names: list[str], rounds: list[int]) -> Table:
        """The runs of a study, those that are under way first."""
        table = Table(box=None, padding=(0, 2), show_header=False)
        order = sorted(range(len(names)), key=lambda i: (FIRST[status.phases[i]], i))
        for i in sorted(order[:MOST_ROWS]):
            mark, style = MARKS[status.phases[i]]
            record = self._rounds.get(i)
            table.add_row(
                Text(mark, style=style),
                Text(names[i]),
                Text(status.phases[i], style=style),
                Text(f"round {self._done(i, status, rounds)} of {rounds[i]}"),
                Text(_accuracy(record.metrics) if record is not None else ""),
            )
        if len(order) > MOST_ROWS:
            table.add_row("", Text(f"and {len(order) - MOST_ROWS} more", style="dim"))
        return table

    def _done(self, run: int, status: Status, rounds: list[int]) -> int:
        """How many rounds are complete; of an earlier command's rounds no record was received."""
        if status.phases[run] == "finished":
            return rounds[run]
        if run in self._rounds:
            return self._rounds[run].round + 1
        return status.progress[run].round if run in status.progress else 0


def _accuracy(metrics: Mapping[str, float]) -> str:
    """The accuracies of a round, each with the model that it is about; empty if nobody was evaluated."""
    known = {model: metrics.get(f"{model}/accuracy_mean") for model in FAMILIES}
    parts = [f"{100 * value:.1f} % {MODELS[model]}" for model, value in known.items() if value is not None]
    return f"accuracy {', '.join(parts)}" if parts else ""


def summary(metrics: Mapping[str, float]) -> str:
    """One line about a round."""
    parts = [text] if (text := _accuracy(metrics)) else []
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.3f}")
    parts.append(f"{metrics['system/train_samples_per_second']:,.0f} samples/s")
    if (missing := metrics["cohort/size"] - metrics["cohort/reported"]) > 0:
        parts.append(f"{missing:.0f} of {metrics['cohort/size']:.0f} did not report")
    return " · ".join(parts)
