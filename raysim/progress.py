"""What a person sees while a run is under way: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from raysim.driver import Status
    from raysim.records import RoundRecord


class ProgressView:
    """Call it with every status; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console, self._live = console, Live(console=console, refresh_per_second=5, transient=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        self._task = self._bars.add_task("starting Ray and its actors", total=None, note="")
        self._start = time.monotonic()
        self._shown: set[tuple[int, int]] = set()

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._live.start()
            self._live.update(self._bars)
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, status: Status, names: list[str], rounds: list[int]) -> None:
        """``names`` and numbers of ``rounds`` of all runs, in the order in which they run."""
        for event in status.events:
            if isinstance(event, str):
                self._console.print(event, style="yellow", highlight=False, soft_wrap=True)
            elif event[1].completed is not None:
                self._completed(event[0], event[1].completed, names, rounds)
        if self._console.is_terminal and status.report is not None:
            done = sum(rounds[: status.run]) + status.report.round + (status.report.completed is not None)
            self._update_live(status, names[status.run], done, sum(rounds))

    def _completed(self, run: int, record: RoundRecord, names: list[str], rounds: list[int]) -> None:
        """A round, once: those since a checkpoint may be played again."""
        if (run, record.round) in self._shown:
            return
        self._shown.add((run, record.round))
        where = f"{names[run]}: round {record.round + 1} of {rounds[run]}"
        if record.rejected:
            ids = ", ".join(map(str, record.rejected))
            line = f"{where}: rejected client {ids}: its parameters were not finite or out of range"
            self._console.print(line, style="yellow", highlight=False)
        if not self._console.is_terminal:
            passed = time.monotonic() - self._start
            self._console.print(f"[{passed:6.1f} s] {where}: {summary(record.metrics)}", highlight=False)
        self._bars.update(self._task, note=summary(record.metrics))

    def _update_live(self, status: Status, name: str, done: int, total: int) -> None:
        report = status.report
        assert report is not None
        self._bars.update(self._task, description=f"{name} · round {report.round + 1}", completed=done, total=total)
        batches = Text(f"client batches {report.tasks_done} of {report.tasks}", style="dim")
        running = [Text(f"  {line}", style="dim", overflow="ellipsis", no_wrap=True) for line in report.running[:8]]
        self._live.update(Group(self._bars, batches, *running))


def summary(metrics: dict[str, float]) -> str:
    """One line about a round."""
    parts = []
    if "personalized/accuracy_mean" in metrics:
        parts.append(f"accuracy {100 * metrics['personalized/accuracy_mean']:.1f} %")
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.3f}")
    parts.append(f"{metrics['system/train_samples_per_second']:,.0f} samples/s")
    if (missing := metrics["cohort/size"] - metrics["cohort/reported"]) > 0:
        parts.append(f"{missing:.0f} of {metrics['cohort/size']:.0f} did not report")
    return " · ".join(parts)


def as_rich(table: pd.DataFrame, title: str) -> Table:
    """A data frame for the console."""
    rich = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for i, column in enumerate(table.columns):
        rich.add_column(str(column), justify="left" if i == 0 else "right")
    for row in table.itertuples(index=False):
        rich.add_row(*(str(value) for value in row))
    return rich
