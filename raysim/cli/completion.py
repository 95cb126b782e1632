"""``raysim completion``"""

from __future__ import annotations

import click

from raysim.cli.base import main


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell needs to complete commands, options and dotted keys: eval "$(raysim completion bash)"."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(main, {}, "raysim", "_RAYSIM_COMPLETE").source())
