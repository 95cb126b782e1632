"""The commands, by what they are for. Heavy imports happen inside them, so that ``raysim --help`` is instant."""

from raysim.cli import helping, looking, models, running  # noqa: F401 - each adds its commands to the group
from raysim.cli.base import main

__all__ = ["main"]
