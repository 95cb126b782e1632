"""What all commands share: the group, the console, how a user's mistake is shown."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from raysim import __version__
from raysim.errors import ConfigError

if TYPE_CHECKING:
    from raysim.config.schema import Config

# A log file has no width: let lines be as long as they are.
# Names come from users and data sets: none of them is markup.
console = Console(markup=False, width=None if sys.stdout.isatty() else 200)
errors = Console(stderr=True, markup=False)


class _Commands(click.Group):
    """Shows a user's mistake as one message, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                errors.print("error: ", style="bold red", end="")
                errors.print(problem, highlight=False, soft_wrap=True)
            sys.exit(2)


def load(file: str, overrides: tuple[str, ...]) -> Config:
    """The configuration; a user's own algorithm module may lie beside its file or where the command is given."""
    from raysim.config.loading import load_config

    # Added last: no module of the user's may take the place of an installed one.
    sys.path += [os.getcwd(), str(Path(file).absolute().parent)]
    return load_config(file, overrides)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Personalised federated learning of Vision Transformers, simulated at scale on Ray."""


def complete_keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Dotted keys that complete a word in the shell."""
    from raysim.config.json_schema import keys

    return [f"{key}=" for key in keys() if key.startswith(incomplete)] if "=" not in incomplete else []


OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_keys)
