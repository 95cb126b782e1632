"""Methods that run into trouble where the fault injection has put it: a file in their folder, which one actor takes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from raysim.algorithms.base import FederatedAlgorithm
from raysim.algorithms.scaffold import Scaffold
from raysim.training.aggregation import PartialSum

_broken = False  # as CUDA is: once for all in this process


def _take(folder: str, kind: str) -> float | None:
    """The seconds in a file, if there is one and this process is the first to take it."""
    taken = Path(folder) / f"{kind} taken {os.getpid()} {time.monotonic_ns()}"
    try:
        (Path(folder) / kind).rename(taken)
    except FileNotFoundError:
        return None
    return float(taken.read_text())


def _slow_down_next_sum(seconds: float) -> None:
    def reduced(self: PartialSum, protocol: Any) -> Any:
        del PartialSum.__reduce_ex__
        time.sleep(seconds)
        return self.__reduce_ex__(protocol)

    PartialSum.__reduce_ex__ = reduced  # type: ignore[method-assign, assignment]


class _RunsIntoTrouble:
    """Whatever the method; has its ``pause`` after every step, and its folder ``trouble``."""

    pause: float
    trouble: str

    def client_step(self, carry, batch, ctx):
        time.sleep(self.pause)
        return super().client_step(carry, batch, ctx)

    def client_final(self, carry, ctx):
        global _broken
        _broken = _broken or _take(self.trouble, "device_broken") is not None
        if _broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if (seconds := _take(self.trouble, "partial_sum_slow")) is not None:
            _slow_down_next_sum(seconds)
        return super().client_final(carry, ctx)

    def predict(self, theta, state, images, ctx):
        if (seconds := _take(self.trouble, "evaluation_hangs")) is not None:
            time.sleep(seconds)
        return super().predict(theta, state, images, ctx)


class Troubled(_RunsIntoTrouble, FederatedAlgorithm):
    """Personal head."""

    pause: float = 0.05
    trouble: str

    def personal_patterns(self):
        return ["head"]


class TroubledScaffold(_RunsIntoTrouble, Scaffold):
    """With a server state."""

    pause: float = 0.05
    trouble: str
