"""The commands, a file each by the command's name, and the progress view.

May import everything; heavy imports happen inside the commands, so that ``raysim --help`` is instant. Begin with ``base.py``.
"""

from raysim.cli import (  # noqa: F401 - each adds its command to the group
    algorithms,
    attach,
    bench,
    cache,
    compare,
    completion,
    dashboard,
    doctor,
    examples,
    export,
    init,
    partition,
    predict,
    resume,
    run,
    schema,
    tune,
)
from raysim.cli.base import main

__all__ = ["main"]
