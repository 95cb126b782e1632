"""``raysim schema``"""

from __future__ import annotations

import click

from raysim.cli.base import main


@main.command()
def schema() -> None:
    """Print the JSON Schema of a YAML file, by which editors complete and check keys."""
    from raysim.config.json_schema import json_schema

    click.echo(json_schema(), nl=False)
