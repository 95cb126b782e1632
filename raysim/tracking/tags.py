"""Every tag of a run in MLflow, by which its table can be filtered."""

from __future__ import annotations

import getpass
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch

from raysim.config.locations import in_ray_job
from raysim.config.schema import Config
from raysim.version import __version__

CHECKPOINT_TAG = "raysim.checkpoint"
"""The folder of a run's checkpoints, by which ``raysim resume`` finds it."""
ENTRY_TAG = "raysim.entry"
"""The name of the run's entry in its study, the same for all seeds."""
FAILURE_TAG = "raysim.failure"
"""Why a run failed, in one line; empty once it goes on."""
REJECTED_TAG = "raysim.rejected"
"""That more than half of the clients' updates were rejected; empty where that is not so."""
ROUNDS_TAG = "raysim.rounds"
"""Of a run that was resumed or has ended early: its rounds, if the parameter differs (MLflow's never change)."""
ENDED_EARLY_TAG = "raysim.ended_early"
"""Of a run that a callback has ended: after which round, which callback, and why; empty once it goes on."""
TUNED_TAG = "raysim.tuned_with"
"""Of a study of tuned values: the budget that each of its entries was tuned with, in words."""
COLOUR_TAG = "mlflow.runColor"
DESCRIPTION_TAG = "mlflow.note.content"


def study_tags(config: Config, commit: str | None) -> dict[str, str]:
    """The tags of a study's parent run."""
    return {**_tags(config, commit), "raysim.kind": "study"}


def run_tags(
    config: Config,
    commit: str | None,
    entry: str,
    colour: str,
    digests: Mapping[str, str],
    device: str,
    device_name: str,
) -> dict[str, str]:
    """Of a run when it starts.

    ``entry`` is the name of its study entry, the same for all seeds; ``digests`` are those of what its results depend on.
    """
    return _tags(config, commit) | {
        "raysim.algorithm": config.algorithm.name,
        "raysim.device": device,
        "raysim.device_name": device_name,
        ENTRY_TAG: entry,
        "raysim.dataset_digest": digests["data"],
        **{f"raysim.{name}_digest": digest for name, digest in digests.items() if name != "data"},
        COLOUR_TAG: colour,
    }


def checksum_tags(checksums: Mapping[str, str]) -> dict[str, str]:
    """The tags of a finished run by which two runs can be compared at a glance."""
    return {f"checksum.{name}": value for name, value in checksums.items()}


def _tags(config: Config, commit: str | None) -> dict[str, str]:
    tags = {"raysim.dataset": config.data.name, "raysim.model": config.model.name}
    tags |= {"mlflow.source.name": "raysim", "mlflow.source.type": "JOB" if in_ray_job() else "LOCAL"}
    with suppress(KeyError, OSError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    tags |= {f"version.{name}": value for name, value in versions().items()}
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return tags


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that results depend on."""
    return {
        "raysim": __version__,
        "ray": version("ray"),
        "torch": torch.__version__,
        "timm": version("timm"),
        "numpy": version("numpy"),
        "safetensors": version("safetensors"),
        "python": platform.python_version(),
    }


def git_commit(folder: Path) -> str | None:
    """The commit of the repository that a folder lies in, with ``+`` if there are uncommitted changes."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # no git, or no repository: there is no commit to tell
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
