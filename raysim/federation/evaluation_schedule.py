"""Which clients are evaluated in which round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raysim.config.schema import Config
from raysim.federation.cohort import evaluated_clients, sample_cohort
from raysim.training.sensitivity import measurable

Ints = NDArray[np.int64]
SENSITIVITY_PARAMETERS = 10_000_000  # shared ones, above which ``evaluate.sensitivity: auto`` measures none


class EvaluationSchedule:
    """``evaluate:`` of a configuration, applied to a round.

    Attributes:
        rounds: of the run; fewer than configured if it ends early.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.rounds = config.rounds

    def is_due(self, round: int) -> bool:
        """Whether clients are evaluated in the round."""
        return (round + 1) % self._config.evaluate.every == 0 or self.is_last(round)

    @property
    def num_due(self) -> int:
        """How many rounds of the run are evaluated, at most."""
        return -(-self._config.rounds // self._config.evaluate.every)

    def measures_sensitivity(self, round: int, num_shared: int) -> bool:
        """Whether ``sensitivity/...`` is measured in the round, for a model with so many shared parameters."""
        asked = self._config.evaluate.sensitivity
        if not measurable(self._config.algorithm.uploads["shared"]):
            return False
        if asked == "auto":
            return num_shared <= SENSITIVITY_PARAMETERS
        if isinstance(asked, bool):
            return asked
        return (round + 1) % asked == 0 or self.is_last(round)

    def is_last(self, round: int) -> bool:
        """Whether it is the last round, whose table has every client."""
        return round + 1 == self.rounds

    def reported(self, round: int) -> Ints:
        """The clients (E,) that the round's metrics are about."""
        if not self.is_due(round):
            return np.array([], np.int64)
        return evaluated_clients(self._config, sample_cohort(self._config, round))

    def evaluated(self, round: int) -> Ints:
        """The clients that are evaluated: those of ``reported``, or all of them in the last round."""
        return np.arange(self._config.data.num_clients) if self.is_last(round) else self.reported(round)
