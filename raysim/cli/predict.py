"""``raysim predict``"""

from __future__ import annotations

from pathlib import Path

import click

from raysim.cli.base import console, main
from raysim.cli.export import model_of


@main.command()
@click.argument("run", metavar="RUN_ID")
@click.argument("images", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="IMAGE...")
@click.option("--client", type=click.IntRange(0), help="Client whose model it is; omit it for a model that all share.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def predict(run: str, images: tuple[Path, ...], client: int | None, uri: str | None) -> None:
    """Classify image files with a client's final model, as a check.

    Images are resized like the training images, and converted to greyscale if those are.
    """
    from raysim.models.export import predict as classify
    from raysim.models.export import read_images

    model = model_of(run, client, uri)
    for path, classes in zip(images, classify(model, read_images(images, model.run.about.in_channels)), strict=True):
        shown = ", ".join(f"{name} {100 * p:.1f} %" for name, p in classes)
        console.print(f"{path}: {shown}", highlight=False, soft_wrap=True)
