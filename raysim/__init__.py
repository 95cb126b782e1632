"""raysim: personalised federated learning of Vision Transformers, simulated at scale on Ray.

import raysim

config = raysim.load_config("yaml/quickstart.yaml", ["rounds=5"])
result = raysim.run(config)
result.history      # a pandas DataFrame, a row per run and round
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysim.version import __version__

__all__ = [
    "Callback",
    "Config",
    "ConfigError",
    "Dataset",
    "Optimizer",
    "Plugin",
    "Result",
    "RunFailed",
    "RunKilled",
    "__version__",
    "attach",
    "load_config",
    "resume",
    "run",
    "session",
    "tune",
]

if TYPE_CHECKING:
    from raysim.config.loading import load_config
    from raysim.config.schema import Config
    from raysim.data.dataset import Dataset
    from raysim.errors import ConfigError
    from raysim.experiments.callbacks.callback import Callback
    from raysim.experiments.command import attach, resume, run
    from raysim.experiments.results import Result
    from raysim.experiments.session import session
    from raysim.experiments.tuning.tune import tune
    from raysim.experiments.watch_driver import RunFailed, RunKilled
    from raysim.functional.optimizers import Optimizer
    from raysim.plugins.registry import Plugin

_HOME = {
    "Callback": "raysim.experiments.callbacks.callback",
    "Config": "raysim.config.schema",
    "load_config": "raysim.config.loading",
    "ConfigError": "raysim.errors",
    "Dataset": "raysim.data.dataset",
    "Result": "raysim.experiments.results",
    "Optimizer": "raysim.functional.optimizers",
    "Plugin": "raysim.plugins.registry",
    "RunFailed": "raysim.experiments.watch_driver",
    "RunKilled": "raysim.experiments.watch_driver",
    "attach": "raysim.experiments.command",
    "resume": "raysim.experiments.command",
    "run": "raysim.experiments.command",
    "session": "raysim.experiments.session",
    "tune": "raysim.experiments.tuning.tune",
}


if not (Path(__file__).parent / "algorithms").is_dir():
    raise ImportError(
        f"{Path(__file__).parent / 'algorithms'} should be a link to the folder algorithms/ beside raysim/. What unpacked or "
        "copied these sources has not kept links: take them with git, or from a .tar.gz"
    )


def __getattr__(name: str) -> Any:
    """Import on first use: torch, timm and Ray take seconds, and ``raysim --help`` needs none of them."""
    if name not in _HOME:
        raise AttributeError(f"module 'raysim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
