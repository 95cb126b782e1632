"""``raysim doctor``"""

from __future__ import annotations

import sys

import click

from raysim.cli.base import OVERRIDES, console, load, main

COLOURS = {"ok": "green", "note": "yellow", "wrong": "bold red"}


@main.command()
@click.argument("file", type=click.Path(dir_okay=False), required=False)
@OVERRIDES
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def doctor(file: str | None, overrides: tuple[str, ...], uri: str | None) -> None:
    """Check that everything is here: Python, torch, GPUs, Ray, MLflow, disk; with a YAML FILE its data and models, too."""
    from raysim.experiments.doctor import examine

    config = load(file, overrides) if file is not None else None
    wrong = 0
    for finding in examine(config, uri):
        console.print(f"{finding.state:>5}  ", style=COLOURS[finding.state], end="")
        console.print(f"{finding.what}: {finding.text}", highlight=False, soft_wrap=True)
        if finding.remedy:
            console.print(f"       {finding.remedy}", highlight=False, soft_wrap=True)
        wrong += finding.state == "wrong"
    if wrong:
        sys.exit(1)
