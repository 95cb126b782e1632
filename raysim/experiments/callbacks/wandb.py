"""The metrics of every round in Weights & Biases."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from raysim.experiments.callbacks.callback import Callback, LiveRun
from raysim.storage.records import RoundRecord

if TYPE_CHECKING:
    from raysim.experiments.events import RunStatus
    from raysim.experiments.results import RunResult


Mode = Literal["online", "offline", "disabled"]


class WandB(Callback):
    """A run of W&B for each run, with the same id as in MLflow; runs of one entry of a study are a group.

    Args:
        project: default: the MLflow experiment.
        entity: your user or team; default: that of your login.
        mode: ``offline`` writes files for ``wandb sync``. Default: WANDB_MODE, else online.
    """

    def __init__(self, project: str | None = None, entity: str | None = None, mode: Mode | None = None) -> None:
        self._project, self._entity, self._mode = project, entity, mode
        self._run: Any = None

    def started(self, run: LiveRun) -> None:
        import wandb  # the extra `wandb` has it

        self._run = wandb.init(
            project=self._project or re.sub(r"[/\\#?%:]", "-", run.experiment)[:128],  # which W&B refuses
            entity=self._entity,
            mode=self._mode,
            dir=str(run.home),
            id=run.run_id,
            name=run.name,
            group=run.entry,
            config=run.config.model_dump(mode="json", exclude={"study"}),
            resume="allow",
            reinit="create_new",  # runs of a study may be under way at the same time
        )

    def round_completed(self, run: LiveRun, record: RoundRecord) -> None:
        if record.round >= self._run.step:  # else an earlier process has logged it
            self._run.log(record.metrics, step=record.round)

    def ended(self, run: LiveRun, status: RunStatus, result: RunResult | None, error: BaseException | None) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if status == "FINISHED" else 1)
