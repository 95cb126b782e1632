"""``raysim algorithms``"""

from __future__ import annotations

import click

from raysim.cli.base import console, main
from raysim.errors import ConfigError


@main.command()
@click.option("--family", metavar="NAME", help="Only methods of this kind, such as lora, partial or hypernetwork.")
def algorithms(family: str | None) -> None:
    """List the algorithms: what each does, sends and keeps, and what it costs.

    S are the shared parameters, D is the length of a representation, E the local epochs. Cost is the arithmetic of local
    training, relative to FedAvg's; FedAvg sends S down and as much up.
    """
    from raysim.algorithms import ALGORITHMS

    families = sorted({cls.about.family for cls in ALGORITHMS.values()})
    if family is not None and family not in families:
        raise ConfigError(f"--family {family}: there is no such family; choose one of: {', '.join(families)}")
    for name, cls in ALGORITHMS.items():
        about = cls.about
        if family not in (None, about.family):
            continue
        console.print(name, style="bold", end="  ")
        first_line = (cls.__doc__ or "").split("\n")[0]
        console.print(f"{cls.paper}\n    {first_line}", highlight=False)
        facts = f"{about.family} · sent: {about.sent} · kept: {about.kept} · evaluated: {about.evaluated}"
        console.print(f"    {facts} · cost: {about.cost}", style="dim", highlight=False, soft_wrap=True)
