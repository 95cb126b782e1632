"""Where the files that a configuration names are: the MLflow store and checkpoints, absolute, and the user's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from raysim.config.sections.running import CheckpointConfig, TrackingConfig
from raysim.errors import ConfigError

CACHE = "~/.cache/raysim"  # downloads and decoded images


def in_ray_job() -> bool:
    """Whether this process is the entrypoint of a job that was submitted to a Ray cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def home() -> Path:
    """Where runs are kept by default: RAYSIM_HOME, else the current directory, or ``~/raysim`` in a Ray job.

    A job's current directory is a copy that is deleted with the job.
    """
    if os.environ.get("RAYSIM_HOME"):
        return Path(os.environ["RAYSIM_HOME"]).expanduser().absolute()
    return Path.home() / "raysim" if in_ray_job() else Path.cwd()


def resolve_uri(config: TrackingConfig) -> str:
    """The tracking URI, absolute: the configured one, MLFLOW_TRACKING_URI, or mlflow.db in ``home()``.

    Raises:
        ConfigError: the path of a database file has something in it that means something else in a URI.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:///"):
        return uri
    path = home() / local_path(uri.removeprefix("sqlite:///"), "tracking.uri")
    if odd := re.search(r"\?|%[0-9a-fA-F]{2}", str(path)):
        raise ConfigError(
            f"tracking.uri: the database {path} has {odd[0]!r} in its path, which means something else in a URI: MLflow "
            "would look for it elsewhere. Rename the folder, or give another by RAYSIM_HOME or "
            "tracking.uri=sqlite:////folder/mlflow.db"
        )
    if not uri.startswith("sqlite:////"):
        path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


def checkpoint_root(config: CheckpointConfig, uri: str) -> str:
    """The folder of all checkpoints, absolute: the configured one, or ``checkpoints`` beside the store of this URI."""
    if config.dir is not None:
        return config.dir if "://" in config.dir else str(home() / Path(config.dir).expanduser())
    beside = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:////") else home()
    return str(beside / "checkpoints")


def local_path(text: str, key: str) -> Path:
    """The path that a key of the configuration gives, with ``~`` replaced.

    Raises:
        ConfigError: no file can have such a name (too long, an unknown user, no permission to look).
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}: {text!r:.200} can't be looked up: {error!s:.200}") from error
    return path
