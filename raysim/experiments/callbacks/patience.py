"""``train.patience``: a run ends early when its clients' validation samples have not been classified better for a while."""

from __future__ import annotations

import math

from raysim.experiments.callbacks.callback import Callback, LiveRun
from raysim.storage.records import RoundRecord
from raysim.views import VALIDATION

METRIC = f"{VALIDATION}/accuracy_mean"


class Patience(Callback):
    """Ends a run ``rounds`` rounds after the one with the best mean accuracy on validation samples so far."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self._best, self._best_round = -math.inf, 0

    def round_completed(self, run: LiveRun, record: RoundRecord) -> None:
        value = record.metrics.get(METRIC)
        if value is None:  # not evaluated in this round, or nobody was left to evaluate
            return
        if value > self._best:
            self._best, self._best_round = value, record.round
        elif record.round - self._best_round >= self.rounds:
            run.stop(
                f"{METRIC} has not been above {self._best:.4f} for {self.rounds} rounds, since round {self._best_round + 1}"
            )
