"""The learning rate over the rounds of a run."""

from __future__ import annotations

import math

from raysim.config.sections.training import TrainConfig


def rate_factor(train: TrainConfig, rounds: int, round: int) -> float:
    """What ``train.optimizer.lr`` is multiplied by in a round, of so many that are configured.

    In W rounds of warm-up it is 1 / (W + 1), 2 / (W + 1), ...; the schedule begins with 1 in the round after them. A round
    before the first (``tasks.BEFORE``) counts as the first one of the warm-up.
    """
    warmup = train.warmup_rounds
    if round < warmup:
        return (max(round, 0) + 1) / (warmup + 1)
    at = round - warmup
    if train.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * at / (rounds - warmup)))
    if train.schedule == "constant":
        return 1.0
    assert train.gamma is not None
    if train.schedule == "exponential":
        return float(train.gamma**at)
    assert train.step_rounds is not None
    return float(train.gamma ** (at // train.step_rounds))
