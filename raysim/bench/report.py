"""``raysim bench`` for the terminal and for a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from raysim.bench.measure import against_plain_torch, many_clients
from raysim.bench.workloads import WORKLOADS
from raysim.errors import ConfigError
from raysim.plots.bench import plot_bench
from raysim.plots.style import check_picture

ROUNDS = {"heavy": 5, "many": 9, "clients": 24}


def run_bench(
    console: Console,
    name: str,
    options: Sequence[str],
    rounds: int | None,
    vary: str | None,
    file: Path | None,
    plot: Path | None,
    trimmed: bool = False,
) -> None:
    """See ``raysim bench --help``; ``options`` are overrides of the workload's configuration.

    Raises:
        ConfigError: an option or override is wrong, the resources are not there, or a file can't be written.
    """
    if file is not None and not file.absolute().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {file.absolute().parent}")
    check_picture(plot)
    key, _, values = (vary or "").partition("=")
    if vary is not None and not (key and values):
        raise ConfigError(f"--vary: {vary!r} is not KEY=VALUE,VALUE,... such as cohort.size=100,1000")
    variants = [f"{key}={value}" for value in values.split(",")] if vary else [None]
    measure = many_clients if name == "clients" else partial(against_plain_torch, trimmed=trimmed)
    measured = []
    for variant in variants:
        if variant is not None:
            console.print(variant, style="bold", highlight=False)
        figures = measure(WORKLOADS[name], rounds or ROUNDS[name], [*options, *([variant] if variant else [])])
        measured.append(figures | ({"varied": variant} if variant else {}))
        for label, text in lines(figures):
            console.print(f"{label:<34}", style="dim", end="")
            console.print(text, highlight=False)
        if file is not None:  # after every variant, so that nothing measured is lost if the next one fails
            file.write_text(json.dumps(measured if vary else figures, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        plot_bench(key, values.split(","), measured).savefig(plot)


def lines(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The printed lines, as pairs of label and figure."""
    f, on = figures, figures["machine"]
    rows = [
        ("workload", f"{f['workload']}: {f['cohort']:,} clients per round, {f['algorithm']['name']}"),
        ("machine", f"{on['cpu']}, {on['cores']} cores, {on['gpu'] or 'no GPU'}; load {on['load_at_start']}"),
        ("actors", f"{f['actors']} on {f['device']}, {f['clients_per_batch']} clients per batch"),
        ("raysim, seconds per round", f"{f['raysim_seconds_per_round']:.3f}"),
    ]
    return rows + (_beside_plain(f) if "plain_seconds_per_round" in f else _beside_few(f))


def _beside_plain(f: dict[str, Any]) -> list[tuple[str, str]]:
    driver, actors = f["peak_private_mb_driver"], f["peak_private_mb_actors"]
    return [
        ("plain torch, seconds per round", f"{f['plain_seconds_per_round']:.3f}"),
        ("  its model", f"timm's {'with its last block trimmed' if f['plain_is_trimmed'] else 'as it is'}"),
        ("ratio, median over rounds", f"{f['ratio']:.2f}"),
        ("largest difference of parameters", f"{f['largest_difference']:.1e} after {f['rounds']} rounds"),
        ("overhead per client", f"{f['overhead_ms_per_client']:.2f} ms that actors spend waiting"),
        ("actors busy", f"{100 * f['actor_busy_fraction']:.0f} % of the time"),
        ("padding", f"{100 * f['padding_fraction']:.1f} % of the samples"),
        ("peak private memory", f"{driver:,.0f} MB driver, {actors:,.0f} MB actors"),
        ("  of the plain loop", f"{f['plain_peak_private_mb']:,.0f} MB"),
        ("object store, written per round", f"{f['object_store_bytes_per_round'] / 1e6:.2f} MB"),
    ]


def _beside_few(f: dict[str, Any]) -> list[tuple[str, str]]:
    started, first, having = f["seconds_to_start"], f["seconds_to_first_round"], f["clients_with_state"]
    return [
        (f"  with {f['few_clients']:,} clients", f"{f['few_clients_seconds_per_round']:.3f}"),
        ("ratio, median over rounds", f"{f['ratio']:.2f}"),
        ("clients", f"{f['num_clients']:,}; {having:,} have a state of {f['state_bytes_per_client']:,} bytes"),
        ("from the command to round 1", f"{started:.1f} s; to the end of the first round {first:.1f} s"),
        ("peak private memory", f"{f['peak_private_mb']:,.0f} MB of driver and actors"),
        ("  from round 5 to the end", f"{f['private_mb_growth']:+,.0f} MB"),
    ]
