"""What the driver's node is doing, once per round, under the names that MLflow gives system metrics."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psutil


class SystemMetrics:
    """CPU and memory (psutil), and every NVIDIA GPU (NVML) of this node; other nodes are not asked."""

    def __init__(self) -> None:
        self._gpus = _gpus()
        psutil.cpu_percent()  # the next call tells of the time since this one

    def read(self) -> dict[str, float]:
        """Utilisation since the last call, of CPUs; and as it is now, of the rest."""
        memory = psutil.virtual_memory()
        metrics = {
            "system/cpu_utilization_percentage": float(psutil.cpu_percent()),
            "system/system_memory_usage_megabytes": memory.used / 1e6,
            "system/system_memory_usage_percentage": float(memory.percent),
        }
        for i, gpu in enumerate(self._gpus):
            import pynvml

            with suppress(pynvml.NVMLError):  # a part of a GPU (MIG) does not tell
                metrics[f"system/gpu_{i}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
            with suppress(pynvml.NVMLError):
                used = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                metrics[f"system/gpu_{i}_memory_usage_megabytes"] = used.used / 1e6
                metrics[f"system/gpu_{i}_memory_usage_percentage"] = 100 * used.used / used.total
        return metrics


def _gpus() -> list[Any]:
    """NVML's handles; none on a machine without its driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
