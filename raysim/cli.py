"""The commands. Heavy imports happen inside them, so that ``raysim --help`` is instant."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from raysim import __version__
from raysim.errors import ConfigError

if TYPE_CHECKING:
    from raysim.config import Config
    from raysim.driver import Status
    from raysim.experiment import Result, Watch
    from raysim.export import ClientModel

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


def _load(file: str, overrides: tuple[str, ...]) -> Config:
    """The configuration; a user's own algorithm module may lie beside its file or where the command is given."""
    from raysim.config_file import load_config

    # After raysim's own modules are loaded, and last: a folder `algorithms` of the user's must not take their place.
    sys.path += [os.getcwd(), str(Path(file).absolute().parent)]
    return load_config(file, overrides)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Personalised federated learning of Vision Transformers, simulated at scale on Ray."""


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--fresh", is_flag=True, help="Start a study anew, whatever of it was left unfinished.")
def run(file: str, overrides: tuple[str, ...], fresh: bool) -> None:
    """Run the YAML FILE, a single run or a study, and log it to MLflow.

    Any key can be changed by its dotted path: train.optimizer.lr=0.1 data.num_clients=100

    A study that was interrupted goes on: finished runs are skipped, the others continue from their checkpoints.
    """
    config = _load(file, overrides)
    from raysim.experiment import run as run_config

    _shown(lambda watch: run_config(config, watch, fresh))


@main.command()
@click.argument("where", metavar="RUN_ID|DIR")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--round", "from_round", type=click.IntRange(0), help="Go back to the checkpoint of so many rounds.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def resume(where: str, overrides: tuple[str, ...], from_round: int | None, uri: str | None) -> None:
    """Go on with a run or study that was interrupted, from its checkpoints, in the same MLflow run.

    RUN_ID is an MLflow run, DIR a folder of checkpoints. Keys that change no result may be changed: resources.num_actors=2
    """
    sys.path.append(os.getcwd())
    from raysim.experiment import resume as resume_runs

    _shown(lambda watch: resume_runs(where, overrides, uri, from_round, watch))


@main.command()
@click.argument("where", metavar="RUN_ID|DIR")
@click.option("--stop", is_flag=True, help="End it; it is closed as KILLED in MLflow.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def attach(where: str, stop: bool, uri: str | None) -> None:
    """Show a run again that goes on in a cluster although its command is gone; Ctrl-C leaves it running."""
    sys.path.append(os.getcwd())
    from raysim.experiment import attach as attach_to

    _shown(lambda watch: attach_to(where, uri, stop, watch))


def _shown(work: Callable[[Watch], Result]) -> None:
    """Do what a command is for, with progress, result and errors on the console."""
    from raysim.experiment import RunFailed, RunKilled
    from raysim.progress import ProgressView

    try:
        with ProgressView(console) as view:

            def watch(status: Status, names: list[str], rounds: list[int]) -> None:
                # Ends as Ctrl-C does, the run closed as KILLED. Here, since Ray puts a handler of its own in place.
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                view(status, names, rounds)

            result = work(watch)
    except RunFailed as error:
        errors.print("the run failed", style="bold red")
        errors.print(str(error), highlight=False, soft_wrap=True)
        sys.exit(1)
    except RunKilled as error:
        errors.print(str(error), highlight=False, soft_wrap=True)
        sys.exit(130)
    _print_result(result)


def _print_result(result: Result) -> None:
    from raysim.compare import caption
    from raysim.progress import as_rich

    console.print(as_rich(result.table, caption(result.experiment)))
    run_id = result.parent_run_id or result.runs[0].run_id
    pictures = "comparison.png" if result.parent_run_id else "partition.png"
    console.print(
        f"run {run_id} in experiment {result.experiment!r}, with {pictures} among its artifacts", highlight=False
    )
    name, uri = shlex.quote(result.experiment), shlex.quote(result.tracking_uri)
    console.print("compare again: ", end="")
    console.print(f"raysim compare {name} --uri {uri}", style="bold", highlight=False, soft_wrap=True)
    console.print("dashboard: ", end="")
    console.print(f"raysim dashboard --experiment {name} --uri {uri}", style="bold", highlight=False, soft_wrap=True)


def _model_of(run: str, client: int | None, uri: str | None) -> ClientModel:
    """The model of a client of an MLflow run."""
    from tempfile import TemporaryDirectory

    from raysim.config import TrackingConfig
    from raysim.export import client_model
    from raysim.models.saved import FOLDER, SavedRun
    from raysim.tracking import artifacts, resolve_uri

    sys.path.append(os.getcwd())
    with TemporaryDirectory() as folder:
        saved = SavedRun.open(artifacts(resolve_uri(TrackingConfig(uri=uri)), run, FOLDER, Path(folder)))
        return client_model(saved, client)


@main.command()
@click.argument("run", metavar="RUN_ID")
@click.option("--client", type=click.IntRange(0), help="Whose model; none for one that all clients share.")
@click.option("--to", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .safetensors file.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def export(run: str, client: int | None, to: Path, uri: str | None) -> None:
    """Write a client's final model as a timm state dict, with a README beside it that loads it without raysim.

    Plugins that are linear (lora, prefix_zero, prefix_random) are folded into timm's parameters; for the others the README
    has the lines of code that add them to timm's model.
    """
    from raysim.export import export as write

    if to.suffix != ".safetensors":
        raise click.UsageError(f"--to {to} should end in .safetensors")
    readme = write(_model_of(run, client, uri), to)
    console.print(f"{to}, and how to load it: {readme}", highlight=False, soft_wrap=True)


@main.command()
@click.argument("run", metavar="RUN_ID")
@click.argument("images", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="IMAGE...")
@click.option("--client", type=click.IntRange(0), help="Whose model; none for one that all clients share.")
@click.option("--uri", help="MLflow tracking URI; default as in `raysim run`.")
def predict(run: str, images: tuple[Path, ...], client: int | None, uri: str | None) -> None:
    """Classify image files with a client's final model, as a check."""
    from raysim.export import predict as classify
    from raysim.export import read_images

    model = _model_of(run, client, uri)
    for path, classes in zip(images, classify(model, read_images(images, model.run.about.in_channels)), strict=True):
        shown = ", ".join(f"{name} {100 * p:.1f} %" for name, p in classes)
        console.print(f"{path}: {shown}", highlight=False, soft_wrap=True)


@main.command()
@click.argument("file", type=click.Path(dir_okay=False))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--plot", type=click.Path(dir_okay=False, writable=True), help="Draw the classes of every client.")
def partition(file: str, overrides: tuple[str, ...], plot: str | None) -> None:
    """Show how FILE divides its data over clients, and what of its model is shared."""
    config = _load(file, overrides)
    from raysim.data.partitions import client_table
    from raysim.plots import check_picture, plot_partition
    from raysim.preparation import prepare
    from raysim.progress import as_rich

    check_picture(Path(plot) if plot else None)
    runs = prepare(config)
    first = runs[0]
    data = first.config.data
    title = f"{data.name}, {data.partition.name}: {first.partition.num_clients} clients"
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
    from raysim.report import Options, report

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
    from raysim.config import TrackingConfig
    from raysim.dashboard import open_dashboard, page_of
    from raysim.tracking import Tracker, check_store, resolve_uri

    store, page = resolve_uri(TrackingConfig(uri=uri)), ""
    check_store(store)
    if experiment is not None:
        tracker = Tracker(store, experiment, create=False)
        page = page_of(tracker.experiment_id, tracker.has_view())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    open_dashboard(
        store, page, port, host, not no_browser, lambda text: console.print(text, highlight=False, soft_wrap=True)
    )


@main.command()
@click.argument("workload", type=click.Choice(["heavy", "many", "clients"]))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
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
