"""``raysim init``"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from raysim.cli.base import console, main


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--data", default="digits", help="Data set, such as cifar100, npz or organamnist. Default: digits.")
@click.option("--method", default="fedperfix", help="See `raysim algorithms`. Default: fedperfix.")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(file: Path, data: str, method: str, force: bool) -> None:
    """Write a YAML FILE to start from: every key, its default and what it means; and a JSON Schema for the editor."""
    from raysim.config.template import write_file
    from raysim.data.sources import check_name

    check_name(data)
    for path in write_file(file, data, method, force):
        console.print(f"written: {path}", highlight=False, soft_wrap=True)
    console.print(f"next: raysim run {shlex.quote(str(file))} --dry-run", highlight=False, soft_wrap=True)
