"""The metrics of every round in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.experiments.callbacks.callback import Callback, LiveRun
from raysim.storage.records import RoundRecord

if TYPE_CHECKING:
    from raysim.experiments.events import RunStatus
    from raysim.experiments.results import RunResult


class TensorBoard(Callback):
    """Writes event files, for ``tensorboard --logdir runs``: a folder for each run, named after it and its MLflow id.

    Args:
        dir: the folder of all runs; relative to that of the command.
    """

    def __init__(self, dir: str = "runs") -> None:
        self._dir = dir
        self._writer: Any = None

    def started(self, run: LiveRun) -> None:
        from torch.utils.tensorboard import SummaryWriter  # the extra `tensorboard` has it

        folder = run.home / Path(self._dir).expanduser() / f"{run.name[:100]}-{run.run_id[:8]}".replace("/", "-")
        # All rounds of a resumed run are told again: what an earlier process wrote counts no more.
        self._writer = SummaryWriter(str(folder), purge_step=0)
        self._writer.add_text("config", f"```\n{run.config.model_dump_json(indent=1)}\n```", 0)

    def round_completed(self, run: LiveRun, record: RoundRecord) -> None:
        for name, value in record.metrics.items():
            self._writer.add_scalar(name, value, record.round, walltime=record.time / 1000)
        self._writer.flush()

    def ended(self, run: LiveRun, status: RunStatus, result: RunResult | None, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()
