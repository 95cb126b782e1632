"""``raysim partition``, ``algorithms``, ``compare``, ``dashboard`` and ``bench``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import click

from raysim.cli.base import OVERRIDES, console, load, main


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@OVERRIDES
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), help="Draw the classes of every client.")
def partition(file: str, overrides: tuple[str, ...], plot: str | None) -> None:
    """Show how FILE divides its data over clients, and what of its model is shared."""
    config = load(file, overrides)
    from raysim.data.partitioners import client_table
    from raysim.plots import check_picture, plot_partition
    from raysim.experiments.preparation import prepare
    from raysim.cli.progress import as_rich

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
    console.print(as_rich(client_table(first.partition, first.dataset), title))
    console.print(first.layout.table(), highlight=False)
    if plot:
        counts = first.partition.class_counts(first.dataset.labels, first.dataset.num_classes)
        name = f"{data.name}, {data.partition.name}: samples per client and class"
        plot_partition(counts, first.dataset.class_names, name).savefig(plot)
        console.print(f"picture: {plot}")


@main.command()
def algorithms() -> None:
    """List the algorithms: name, one line, paper."""
    from algorithms import ALGORITHMS

    for name, cls in ALGORITHMS.items():
        first_line = (cls.__doc__ or "").split("\n")[0]
        console.print(name, style="bold", end="  ")
        console.print(f"{cls.paper}\n    {first_line}", highlight=False)


@main.command()
@click.argument("experiments", nargs=-1, required=True, metavar="EXPERIMENT...")
@click.option("--group-by", "by", default="name", help="name (entries of the study), algorithm, or any dotted key.")
@click.option("--last", default=1, type=click.IntRange(1), help="Mean of so many last evaluated rounds; default 1.")
@click.option("--best", is_flag=True, help="Best round of each run: optimistic, as it is chosen on the test samples.")
@click.option(
    "--format",
    "form",
    default="table",
    type=click.Choice(["table", "markdown", "latex", "csv"]),
    help="Default: table.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    help="Gain over this group, paired by seed and client. Default in a table: local and fedavg, where there.",
)
@click.option("--fairness", is_flag=True, help="Also in other formats than a table.")
@click.option("--target", type=click.FloatRange(0, 1), help="Rounds and megabytes to this mean accuracy, such as 0.6.")
@click.option("--run", "runs", multiple=True, help="This run or study, by its MLflow id, in place of the latest study.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Accuracy over rounds, megabytes, time.")
@click.option(
    "--plot-gains", type=click.Path(dir_okay=False, path_type=Path), help="Gain over the baseline per kilobyte."
)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="All pictures, into this folder.")
@click.option("--dark", is_flag=True, help="Pictures for a dark background.")
def compare(experiments: tuple[str, ...], uri: str | None, best: bool, last: int, dark: bool, **options: Any) -> None:
    """The tables and pictures of the latest study of each EXPERIMENT again, from MLflow.

    Methods are paired by seed and client. In markdown, latex and csv several experiments (one per data set) stand side by
    side; in the first two the best and the second best are marked.
    """
    from raysim.analysis.report import Options, report

    if best and last != 1:
        raise click.UsageError("--best and --last exclude each other")
    if options["plot_gains"] and len(options["baselines"]) != 1:
        raise click.UsageError("--plot-gains needs one --baseline NAME")
    chosen = Options(last="best" if best else last, background="dark" if dark else "light", **options)
    report(console, experiments, uri, chosen)


@main.command()
@click.option("--experiment", help="Open the comparison of its latest study, or the list of its runs.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
@click.option("--port", type=click.IntRange(1, 65535), help="Default: one that is free.")
@click.option("--host", default="127.0.0.1", help="Default: 127.0.0.1, which only this machine can reach.")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
def dashboard(experiment: str | None, uri: str | None, port: int | None, host: str, no_browser: bool) -> None:
    """Serve MLflow's own pages on this machine until Ctrl-C, and open them in the browser."""
    from raysim.config.schema import TrackingConfig
    from raysim.tracking.dashboard import open_dashboard, page_of
    from raysim.tracking.mlflow_store import Tracker, check_store, resolve_uri

    store, page = resolve_uri(TrackingConfig(uri=uri)), ""
    check_store(store)
    if experiment is not None:
        tracker = Tracker(store, experiment, create=False)
        page = page_of(tracker.experiment_id, tracker.has_view())
    for way_to_end in (signal.SIGINT, signal.SIGTERM):  # the first may be ignored by a script that started us
        signal.signal(way_to_end, signal.default_int_handler)
    open_dashboard(
        store, page, port, host, not no_browser, lambda text: console.print(text, highlight=False, soft_wrap=True)
    )


@main.command()
@click.argument("workload", type=click.Choice(["heavy", "many", "clients"]))
@OVERRIDES
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Default: auto.")
@click.option("--actors", type=click.IntRange(1), help="Client actors, and processes of the plain loop. Default: auto.")
@click.option("--rounds", type=click.IntRange(2), help="Measured rounds. Default: 5 (heavy), 9 (many), 24 (clients).")
@click.option("--algorithm", help="Default: fedavg (clients: fedperfix). Its keys as overrides: algorithm.mid_dim=64")
@click.option("--vary", metavar="KEY=V1,V2,...", help="Measure several values of a key, one after another.")
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
    file: Path | None,
    plot: Path | None,
) -> None:
    """Measure what a round costs, on images that are made up.

    \b
    heavy    20 clients per round with a larger model, beside a loop in plain torch
    many     1,000 of 10,000 clients per round with a tiny model, beside the same loop
    clients  1,000 of 100,000 clients per round that keep a state, beside 2,000 clients

    Any key can be changed by its dotted path: cohort.size=500 resources.clients_per_batch=16
    """
    from raysim.bench.report import run_bench

    if plot is not None and vary is None:
        raise click.UsageError("--plot needs --vary KEY=V1,V2,...")
    options = [f"resources.device={device}", *([f"resources.num_actors={actors}"] if actors is not None else [])]
    options += [f"algorithm={{name: {algorithm}}}"] if algorithm is not None else []
    run_bench(console, workload, [*options, *overrides], rounds, vary, file, plot)
