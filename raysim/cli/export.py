"""``raysim export``, and how a client's model is found"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raysim.cli.base import console, main

if TYPE_CHECKING:
    from raysim.models.export import ClientModel


def model_of(run: str, client: int | None, uri: str | None) -> ClientModel:
    """The model of a client of an MLflow run."""
    from tempfile import TemporaryDirectory

    from raysim.config.locations import resolve_uri
    from raysim.config.sections.running import TrackingConfig
    from raysim.models.export import client_model
    from raysim.models.saved import FOLDER, SavedRun
    from raysim.tracking.mlflow_reader import artifacts

    sys.path.append(os.getcwd())
    with TemporaryDirectory() as folder:
        saved = SavedRun.open(artifacts(resolve_uri(TrackingConfig(uri=uri)), run, FOLDER, Path(folder)))
        return client_model(saved, client)


@main.command()
@click.argument("run", metavar="RUN_ID")
@click.option("--client", type=click.IntRange(0), help="Client whose model it is; omit it for a model that all share.")
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .safetensors file.")
@click.option("--log", is_flag=True, help="Also log it to its run, as a model of MLflow.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def export(run: str, client: int | None, to: Path, log: bool, uri: str | None) -> None:
    """Write a client's final model as a timm state dict, with a README beside it that loads it without raysim.

    Plugins that are linear (lora, prefix_zero, prefix_random) are folded into timm's parameters; for the others the README
    has the lines of code that add them to timm's model. With --log, `mlflow.pytorch.load_model` loads it without timm, too.
    """
    from raysim.config.locations import resolve_uri
    from raysim.config.sections.running import TrackingConfig
    from raysim.models.export import check_whole
    from raysim.models.export import export as write
    from raysim.tracking.logged_model import log_model

    if to.suffix != ".safetensors":
        raise click.UsageError(f"--to {to} should end in .safetensors")
    model, logged = model_of(run, client, uri), None
    if log:
        check_whole(model)
        store, name = resolve_uri(TrackingConfig(uri=uri)), "shared" if client is None else f"client-{client}"
        logged = store, log_model(store, run, name, model.model, model.example())
    readme = write(model, to, logged)
    console.print(f"{to}, and how to load it: {readme}", highlight=False, soft_wrap=True)
