"""``raysim init``, ``doctor``, ``schema`` and ``completion``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from raysim.cli.base import OVERRIDES, console, load, main

COLOURS = {"ok": "green", "note": "yellow", "wrong": "bold red"}


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--data", default="digits", help="Data set, such as cifar100, npz or organamnist. Default: digits.")
@click.option("--method", default="fedperfix", help="See `raysim algorithms`. Default: fedperfix.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(file: Path, data: str, method: str, force: bool) -> None:
    """Write a YAML FILE to start from: every key, its default and what it means; and a JSON Schema for the editor."""
    from raysim.config.template import write_file

    for path in write_file(file, data, method, force):
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    console.print(f"next: raysim run {shlex.quote(str(file))} --dry-run", highlight=False, soft_wrap=True)


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


@main.command()
def schema() -> None:
    """Print the JSON Schema of a YAML file, by which editors complete and check keys."""
    from raysim.config.json_schema import json_schema

    click.echo(json_schema(), nl=False)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell needs to complete commands, options and dotted keys: eval "$(raysim completion bash)"."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(main, {}, "raysim", "_RAYSIM_COMPLETE").source())
