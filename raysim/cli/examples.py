"""``raysim examples``"""

from __future__ import annotations

from pathlib import Path

import click

from raysim.cli.base import console, main
from raysim.errors import ConfigError


@main.command()
@click.argument("name", required=False)
@click.option("--to", type=click.Path(path_type=Path), help="The file to write; default: its own name, in this folder.")
def examples(name: str | None, to: Path | None) -> None:
    """List the YAML files that come with raysim, which `raysim run` takes by name; with a NAME, copy one to change it."""
    from raysim.config import examples as ours

    known = ours.examples()
    if name is None:
        for each, about in known.items():
            console.print(each, style="bold")
            console.print(f"    {about}", highlight=False)
        return
    if (path := ours.example(name)) is None:
        raise ConfigError(f"there is no example {name!r}; `raysim examples` lists them")
    to = to or Path(path.name)
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{to}: can't be written: {error}") from error
    console.print(f"written: {to}", highlight=False, soft_wrap=True)
