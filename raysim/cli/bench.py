"""``raysim bench``"""

from __future__ import annotations

from pathlib import Path

import click

from raysim.cli.base import OVERRIDES, console, main


@main.command()
@click.argument("workload", type=click.Choice(["heavy", "many", "clients"]))
@OVERRIDES
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Default: auto.")
@click.option("--actors", type=click.IntRange(1), help="Client actors, and processes of the plain loop. Default: auto.")
@click.option("--rounds", type=click.IntRange(2), help="Measured rounds. Default: 5 (heavy), 9 (many), 24 (clients).")
@click.option("--algorithm", help="Default: fedavg (clients: fedperfix). Its keys as overrides: algorithm.mid_dim=64")
@click.option("--vary", metavar="KEY=V1,V2,...", help="Measure several values of a key, one after another.")
@click.option("--trimmed", is_flag=True, help="The plain loop, too, leaves out what no output depends on (last block).")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures to this file.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="With --vary: draw seconds per round.")
def bench(
    workload: str,
    overrides: tuple[str, ...],
    device: str,
    actors: int | None,
    rounds: int | None,
    algorithm: str | None,
    vary: str | None,
    trimmed: bool,
    file: Path | None,
    plot: Path | None,
) -> None:
    """Measure what a round costs, on images that are made up.

    \b
    heavy    20 clients per round with a larger model, beside a loop in plain torch
    many     1,000 of 10,000 clients per round with a tiny model, beside the same loop
    clients  1,000 of 100,000 clients per round that keep a state, beside 2,000 clients

    The plain loop runs timm's model as it is. raysim leaves out what no output depends on; so does the loop with --trimmed.

    Any key can be changed by its dotted path: cohort.size=500 resources.clients_per_batch=16
    """
    from raysim.bench.report import run_bench

    if plot is not None and vary is None:
        raise click.UsageError("--plot needs --vary KEY=V1,V2,...")
    if trimmed and workload == "clients":
        raise click.UsageError("--trimmed is about the plain loop, which bench clients has not got")
    options = [f"resources.device={device}", *([f"resources.num_actors={actors}"] if actors is not None else [])]
    options += [f"algorithm={{name: {algorithm}}}"] if algorithm is not None else []
    run_bench(console, workload, [*options, *overrides], rounds, vary, file, plot, trimmed)
