"""``raysim algorithms``"""

from __future__ import annotations

from raysim.cli.base import console, main


@main.command()
def algorithms() -> None:
    """List the algorithms: name, one line, paper."""
    from raysim.algorithms import ALGORITHMS

    for name, cls in ALGORITHMS.items():
        first_line = (cls.__doc__ or "").split("\n")[0]
        console.print(name, style="bold", end="  ")
        console.print(f"{cls.paper}\n    {first_line}", highlight=False)
