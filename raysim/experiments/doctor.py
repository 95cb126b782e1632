"""``raysim doctor``: is everything here that a run needs, and if not, what to do about it.

A library is imported by the check that is about it, so that a broken one is a finding.
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from raysim.config.locations import checkpoint_root, resolve_uri
from raysim.config.schema import Config
from raysim.config.sections.running import CheckpointConfig, TrackingConfig
from raysim.errors import ConfigError
from raysim.tracking.mlflow_store import check_writes
from raysim.workers.cluster import usable_cpus

LEAST_DISK = 2e9  # bytes
LEAST_MEMORY = 0.6e9  # of an actor: torch and timm take half a gigabyte
CONNECT_SECONDS = 3
OLDEST_PYTHON = (3, 10)


@dataclass(frozen=True)
class Finding:
    """What a check found, and what to do about it unless all is well."""

    state: Literal["ok", "note", "wrong"]
    what: str
    text: str
    remedy: str = ""


def examine(config: Config | None, uri: str | None) -> Iterator[Finding]:
    """All checks; those of the data and the model only with a configuration."""
    tracking = TrackingConfig(uri=uri) if uri is not None or config is None else config.tracking
    store = resolve_uri(tracking)
    checkpoint = config.checkpoint if config is not None else CheckpointConfig()
    for what, check in (
        ("Python", _python),
        ("torch", _torch),
        ("GPU", _gpus),
        ("CPU and memory", _memory),
        ("Ray", _ray),
        ("MLflow", lambda: _store(store)),
        ("disk", lambda: _disk(checkpoint_root(checkpoint, store))),
        *((("data and model", lambda: _data(config)),) if config is not None else ()),
    ):
        yield from _careful(what, check)


def _careful(what: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Run a check; if it crashes, that is a finding, too, since a library may be broken in any way."""
    try:
        return check()
    except Exception as error:
        return [Finding("wrong", what, f"{type(error).__name__}: {error}", "reinstall raysim in a fresh environment")]


def _python() -> list[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        return [Finding("wrong", "Python", here, "raysim needs Python 3.10 or newer")]
    return [Finding("ok", "Python", f"{here} in {sys.prefix}")]


def _torch() -> list[Finding]:
    import timm
    import torch
    import torchvision

    text = f"{torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}"
    return [Finding("ok", "torch", f"{text}, {torch.backends.cpu.get_cpu_capability()}")]


def _gpus() -> list[Finding]:
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        present = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        present = 0
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [Finding("ok", "GPU", names)]
    if present:
        text = f"{present} NVIDIA GPUs, which torch {torch.__version__} can't use"
        return [Finding("wrong", "GPU", text, "install a torch with CUDA that this driver supports: pip install torch")]
    return [Finding("note", "GPU", "none; runs use the CPU", "")]


def _memory() -> list[Finding]:
    import psutil

    cores, free = usable_cpus(), psutil.virtual_memory().available
    text = f"{cores} cores, {free / 1e9:.1f} GB of memory free"
    if free < cores * LEAST_MEMORY:
        fit = max(1, int(free / LEAST_MEMORY))
        return [Finding("wrong", "CPU and memory", text, f"an actor per core does not fit: resources.num_actors={fit}")]
    return [Finding("ok", "CPU and memory", text)]


def _ray() -> list[Finding]:
    address, found = os.environ.get("RAY_ADDRESS"), version("ray")
    if address is None:
        return [Finding("ok", "Ray", f"{found}; no RAY_ADDRESS: each command starts a local cluster")]
    if address in ("local", "auto") or "://" in address:
        return [Finding("note", "Ray", f"{found}; RAY_ADDRESS={address} is not tried here")]
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS):
            return [Finding("ok", "Ray", f"{found}; the cluster at {address} answers")]
    except (OSError, ValueError) as error:
        remedy = "start it (ray start --head), or unset RAY_ADDRESS for a local cluster"
        return [Finding("wrong", "Ray", f"RAY_ADDRESS={address} does not answer: {error}", remedy)]


def _store(uri: str) -> list[Finding]:
    if not uri.startswith("sqlite:////"):
        try:
            check_writes(uri)
        except ConfigError as error:
            remedy = "start the server, or set MLFLOW_TRACKING_URI or --uri"
            if isinstance(error.__cause__, ModuleNotFoundError):
                remedy = "wherever the driver runs: here, or in the environment of a Ray job"
            return [Finding("wrong", "MLflow", str(error), remedy)]
        return [Finding("ok", "MLflow", f"{uri} can be read and written")]
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        if os.access(path.parent, os.W_OK):
            return [Finding("ok", "MLflow", f"{uri}, which the first run makes")]
        what = "can't be written" if path.parent.exists() else "is no folder"
        return [Finding("wrong", "MLflow", f"{path.parent} {what}", "set RAYSIM_HOME or MLFLOW_TRACKING_URI")]
    try:
        store = sqlite3.connect(path, timeout=CONNECT_SECONDS)
        try:
            store.execute("BEGIN IMMEDIATE")  # asks for the lock of a writer
            store.rollback()
        finally:
            store.close()
    except sqlite3.Error as error:
        return [
            Finding(
                "wrong",
                "MLflow",
                f"{uri} can't be written: {error}",
                "does another process hold it, or another user own it?",
            )
        ]
    return [Finding("ok", "MLflow", f"{uri} can be read and written")]


def _disk(checkpoints: str) -> list[Finding]:
    places = {"personal states": tempfile.gettempdir()}
    if "://" not in checkpoints:
        places["checkpoints"] = checkpoints
    if Path("/dev/shm").is_dir():
        places["Ray's objects"] = "/dev/shm"
    findings = []
    for what, place in places.items():
        there = next(p for p in (Path(place), *Path(place).absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        text = f"{free / 1e9:.1f} GB free at {there}, for {what}"
        if not there.is_dir() or not os.access(there, os.W_OK):
            findings.append(
                Finding("wrong", "disk", f"{there}, for {what}, is no folder that can be written", "choose another")
            )
            continue
        remedy = {"personal states": "set TMPDIR", "checkpoints": "set checkpoint.dir or RAYSIM_HOME"}.get(what)
        if free < LEAST_DISK:
            findings.append(Finding("wrong", "disk", text, remedy or "give the container more: --shm-size=4g"))
        else:
            findings.append(Finding("ok", "disk", text))
    return findings


def _data(config: Config) -> list[Finding]:
    from raysim.experiments.preparation import data_warnings, prepare

    try:
        runs = prepare(config)
    except ConfigError as error:
        return [Finding("wrong", "data and model", problem, "") for problem in error.problems]
    data = runs[0].dataset
    size = "×".join(map(str, data.images.shape[1:]))
    text = f"{config.data.name}: {len(data.labels):,} images of {size} in {data.num_classes} classes, {len(runs)} runs ready"
    doubts = [
        Finding("note", "data", line, "results on such a split are not comparable") for line in data_warnings(runs)
    ]
    return [Finding("ok", "data and model", text), *doubts]
