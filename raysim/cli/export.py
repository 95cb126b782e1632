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
    from raysim.config.schema import TrackingConfig
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
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def export(run: str, client: int | None, to: Path, uri: str | None) -> None:
    """Write a client's final model as a timm state dict, with a README beside it that loads it without raysim.

    Plugins that are linear (lora, prefix_zero, prefix_random) are folded into timm's parameters; for the others the README
    has the lines of code that add them to timm's model.
    """
    from raysim.models.export import export as write

    if to.suffix != ".safetensors":
        raise click.UsageError(f"--to {to} should end in .safetensors")
    readme = write(model_of(run, client, uri), to)
    console.print(f"{to}, and how to load it: {readme}", highlight=False, soft_wrap=True)
