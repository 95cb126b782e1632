"""``raysim partition``"""

from __future__ import annotations

from pathlib import Path

import click

from raysim.cli.base import OVERRIDES, console, load, main


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), help="Draw the classes of every client.")
@click.option(
    "--save", type=click.Path(dir_okay=False, writable=True), help="Write it as an npz for the partition `file`."
)
def partition(file: str, overrides: tuple[str, ...], plot: str | None, save: str | None) -> None:
    """Show how FILE divides its data over clients, and what of its model is shared."""
    config = load(file, overrides)
    from raysim.analysis.client_tables import partition_table, split_sizes
    from raysim.analysis.table_formats import as_rich
    from raysim.data.partition_file import save_partition
    from raysim.experiments.preparation import data_warnings, prepare
    from raysim.plots.partition import plot_partition
    from raysim.plots.style import check_picture

    check_picture(Path(plot) if plot else None)
    runs = prepare(config)
    first = runs[0]
    data = first.config.data
    title = f"{data.name}, {data.partition.name}: {first.partition.num_clients} clients"
    if first.config.evaluate.new_clients:
        title += f", of which the last {first.config.evaluate.new_clients} never take part"
    if len(runs) > 1:
        title += (
            f" (of {first.config.name!r}, the first of {len(runs)} runs; study=null for the file without its study)"
        )
    console.print(as_rich(partition_table(first.partition, first.dataset), title))
    console.print(first.layout.table(), highlight=False)
    for line in data_warnings(runs):
        click.echo(f"warning: {line}", err=True)
    if plot:
        counts = first.partition.class_counts(first.dataset.labels, first.dataset.num_classes)
        sizes = split_sizes(first.partition)
        total = sum(int(counts_of.sum()) for counts_of in sizes.values())
        shares = ", ".join(f"{100 * counts_of.sum() / total:.0f} % {split}" for split, counts_of in sizes.items())
        name = f"{data.name}, {data.partition.name}: samples per client and class ({shares})"
        plot_partition(counts, first.dataset.class_names, name).savefig(plot)
        console.print(f"picture: {plot}")
    if save:
        save_partition(first.partition, Path(save))
        console.print(f"split: {save}")
