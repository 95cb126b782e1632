"""``system/...``: how fast a round was, and what the driver's node was doing, under MLflow's names for system metrics."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pandas as pd
import psutil

from raysim.training.tasks import TaskResult


class NodeMetrics:
    """CPU, memory (psutil) and every NVIDIA GPU (NVML) of this node; other nodes are not measured."""

    def __init__(self) -> None:
        self._gpus = _gpus()
        psutil.cpu_percent()  # the next call tells of the time since this one

    def read(self) -> dict[str, float]:
        """The utilisation of CPUs since the last call, and the current values of the rest."""
        memory = psutil.virtual_memory()
        metrics = {
            "system/cpu_utilization_percentage": float(psutil.cpu_percent()),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": float(memory.percent),
        }
        for i, gpu in enumerate(self._gpus):
            import pynvml  # not at the top: of no use without a GPU

            with suppress(pynvml.NVMLError):  # a part of a GPU (MIG) does not report it
                metrics[f"system/gpu_{i}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
            with suppress(pynvml.NVMLError):
                used = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                metrics[f"system/gpu_{i}_memory_usage_megabytes"] = used.used / 1e6
                metrics[f"system/gpu_{i}_memory_usage_percentage"] = 100 * used.used / used.total
        return metrics


def speed_metrics(
    seconds: float, samples: int, busy_seconds: float, num_actors: int, padding_fraction: float
) -> dict[str, float]:
    """Of a round of ``seconds`` in which clients trained on ``samples`` and all actors together worked ``busy_seconds``."""
    return {
        "system/round_seconds": seconds,
        "system/train_samples_per_second": samples / seconds,
        "system/actor_busy_fraction": busy_seconds / (max(1, num_actors) * seconds),
        "system/padding_fraction": padding_fraction,
    }


def _gpus() -> list[Any]:
    """NVML's handles; none on a machine without its driver."""
    import pynvml  # not at the top: of no use without a GPU

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def timeline(results: Sequence[TaskResult]) -> pd.DataFrame:
    """What ran where, when: a row per client batch with ``actor``, ``kind``, ``start``, ``seconds`` and ``clients``."""
    first = min(result.started for result in results)
    rows = [(r.actor, r.task.kind, r.started - first, r.seconds, len(r.task.clients)) for r in results]
    return pd.DataFrame(rows, columns=["actor", "kind", "start", "seconds", "clients"]).sort_values(["actor", "start"])
