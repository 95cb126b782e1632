"""The machine that figures were measured on, and the memory of processes."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import torch

from raysim.version import __version__
from raysim.workers.cluster import usable_cpus


@dataclass
class Memory:
    """Private memory of groups of processes in MB after each round; actors then still hold most of what they used."""

    groups: dict[str, list[int]]
    peak: dict[str, float] = field(default_factory=dict)

    def look(self) -> float:
        """Measure all groups, update their peaks, and return the sum."""
        now = {name: sum(private_mb(pid) for pid in pids) for name, pids in self.groups.items()}
        self.peak = {name: max(value, self.peak.get(name, 0.0)) for name, value in now.items()}
        return sum(now.values())


def private_mb(pid: int) -> float:
    """Memory that only this process uses, without what it shares (the object store, libraries)."""
    return float(psutil.Process(pid).memory_full_info().uss) / 1e6


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": usable_cpus(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_at_start": round(psutil.getloadavg()[0], 2),
        "system": platform.platform(),
        "versions": {
            "raysim": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ray": ray.__version__,
        },
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
