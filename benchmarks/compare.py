"""raysim beside other simulators on the workloads of ``raysim bench``, in turn, round by round. See README.md here."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from sides import HERE, RIVALS, Side, SideFailed
from task import Settings, Task

from raysim import seeds
from raysim.bench.machine import machine
from raysim.bench.workloads import NUM_CLASSES, WORKLOADS
from raysim.config.loading import config_of
from raysim.experiments.preparation import prepare_run
from raysim.federation.cohort import sample_cohort
from raysim.workers.cluster import usable_cpus


@dataclass
class Measured:
    """Of one side, one figure for each round after the warm-up round.

    Attributes:
        cpu_seconds: of all its processes in its own turns; waiting_cpu_seconds: in the turns of the others.
        difference: the largest of its parameters to raysim's after the last round.
    """

    versions: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    waiting_cpu_seconds: float = 0.0
    private_mb: float = 0.0
    difference: float | None = None


def make_task(name: str, rounds: int, processes: int) -> Task:
    """The same cohorts, samples, orders and initial parameters as raysim draws from its seed."""
    workload = WORKLOADS[name]
    config = config_of(workload.raw, [f"rounds={rounds}"], name)
    partition, dataset = workload.partition(workload.num_clients), workload.dataset()
    cohorts = [sample_cohort(config, round) for round in range(rounds)]

    def order(round: int, client: int) -> NDArray[np.int64]:
        index = partition.train(client)
        return index[
            seeds.stream(config.seed, "batches", round, client).permuted(np.arange(len(index))[None], axis=1)[0]
        ]

    prepared = prepare_run(name, config, dataset, partition)
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.0, 0.0)
    return Task(
        Settings(
            workload=name,
            rounds=rounds,
            num_clients=workload.num_clients,
            cohort=workload.cohort,
            batch_size=workload.batch_size,
            learning_rate=optimizer.lr,
            num_classes=NUM_CLASSES,
            side=workload.side,
            model=workload.model,
            processes=processes,
        ),
        dataset.images,
        dataset.labels,
        np.array([[order(round, client) for client in cohort] for round, cohort in enumerate(cohorts)]),
        np.array([[partition.test(client) for client in cohort] for cohort in cohorts]),
        {n: t.clone() for n, t in prepared.layout.unflatten(torch.from_numpy(prepared.initial)).items()},
    )


def compare(name: str, names: list[str], rounds: int, processes: int, limit: float, logs: Path) -> dict[str, Any]:
    """Measure all sides; one that fails is reported and left out, and the others go on."""
    facts, measured, failed = machine(), dict[str, Measured](), dict[str, str]()
    parameters: dict[str, dict[str, NDArray[np.float32]]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        make_task(name, rounds + 1, processes).save(Path(folder))
        sides: dict[str, Side] = {}

        def fails(side: str, error: SideFailed) -> None:
            click.echo(f"FAILED {error}", err=True)
            failed[side] = str(error)
            if side in sides:
                sides.pop(side).close()
            measured.pop(side, None)

        for side in names:
            try:
                click.echo(f"{name}: {side} starts", err=True)
                sides[side] = stack.enter_context(
                    Side(side, Path(folder), logs / f"{name}-{side}.log", processes, limit)
                )
                sides[side].wait_until_ready()
                measured[side] = Measured(sides[side].versions)
            except SideFailed as error:
                fails(side, error)
        for round in range(rounds + 1):
            first = round % max(1, len(sides))
            for side in [*sides][first:] + [*sides][:first]:
                before = {other: sides[other].cpu_seconds() for other in sides}
                try:
                    seconds = sides[side].round(round)
                except SideFailed as error:
                    fails(side, error)
                    continue
                click.echo(f"{name}: round {round} of {rounds}, {side}, {seconds:.2f} s", err=True)
                spent = {other: sides[other].cpu_seconds() - before[other] for other in sides}
                for other in measured.keys() - {side}:
                    measured[other].waiting_cpu_seconds += spent[other]
                measured[side].private_mb = max(measured[side].private_mb, sides[side].private_mb())
                if round:  # the first one warms up
                    measured[side].seconds.append(seconds)
                    measured[side].cpu_seconds.append(spent[side])
        for side in [*sides]:
            try:
                parameters[side] = sides[side].finish()
            except SideFailed as error:
                fails(side, error)
    ours = parameters.get("raysim", {})
    for side, theirs in parameters.items() if ours else ():
        if odd := sorted(theirs.keys() ^ ours.keys()):
            failed[side] = f"{side} ended with other parameters than raysim: {', '.join(odd[:5])}"
            click.echo(f"FAILED {failed[side]}", err=True)
            continue
        measured[side].difference = max(float(np.abs(theirs[key] - ours[key]).max()) for key in ours)
    rows = {side: vars(row) for side, row in measured.items()}
    return {
        "workload": name,
        "rounds": rounds,
        "processes": processes,
        "sides": rows,
        "failed": failed,
        "machine": facts,
    }


def table(figures: dict[str, Any]) -> str:
    """A Markdown table; ratios are medians over rounds of a side's seconds by raysim's in the same round."""
    sides, workload = figures["sides"], WORKLOADS[figures["workload"]]
    ours = np.array(sides["raysim"]["seconds"]) if "raysim" in sides else None
    lines = [
        f"`{workload.name}`: {workload.cohort:,} of {workload.num_clients:,} clients per round, {figures['rounds']} rounds "
        f"after a warm-up, {figures['processes']} processes with a thread each",
        "",
        "| | versions | s/round | times raysim | CPU s/round | private MB | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sides.items():
        versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
        times = "–" if ours is None else f"{np.median(np.array(row['seconds']) / ours):.1f}"
        difference = "–" if row["difference"] is None else f"{row['difference']:.0e}"
        lines.append(
            f"| {name} | {versions} | {np.median(row['seconds']):.2f} | {times} | {np.median(row['cpu_seconds']):.2f} | "
            f"{row['private_mb']:,.0f} | {difference} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("workloads", nargs=-1, required=True, type=click.Choice(["many", "heavy"]))
@click.option("--side", "sides", multiple=True, type=click.Choice(RIVALS), help="Default: all of them.")
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Measured rounds, after a warm-up."
)
@click.option("--processes", type=click.IntRange(1), help="For each side, a thread each. Default: one per core.")
@click.option("--limit", default=1800.0, show_default=True, help="Seconds for a start or a round.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures to this file.")
def main(
    workloads: tuple[str, ...],
    sides: tuple[str, ...],
    rounds: int,
    processes: int | None,
    limit: float,
    file: Path | None,
) -> None:
    """raysim beside other simulators, in turn, round by round."""
    if file is not None and not file.absolute().parent.is_dir():
        raise click.UsageError(f"--json: there is no folder {file.absolute().parent}")
    logs = HERE / ".logs"
    logs.mkdir(exist_ok=True)
    done = []
    for name in workloads:
        figures = compare(name, list(sides or RIVALS), rounds, processes or usable_cpus(), limit, logs)
        click.echo(f"\n{table(figures)}\n")
        done.append(figures)
        if file is not None:
            file.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    if any(figures["failed"] for figures in done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
