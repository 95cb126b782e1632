"""A run in words, in Markdown: what MLflow shows on its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from raysim.config.dotted import flatten
from raysim.config.schema import Config
from raysim.storage.records import RoundRecord
from raysim.views import MODELS, ClientSet, Model, View, headline

MOST_LETTERS = 6000
"""Of the table of results: MLflow refuses a description of more than 8,000."""


def describe_run(config: Config, commit: str | None, run_id: str, last: RoundRecord | None = None) -> str:
    """What is run, who has which classes, the results of its last round once it is finished, and how to run it again."""
    lines = [f"**{config.algorithm.name}**, seed {config.seed}: {what_is_run(config)}", ""]
    lines += [_picture("partition.png", run_id), ""]
    if last is not None:
        lines += [f"After round {last.round + 1}:", "", _results(last.metrics), ""]
        lines += [
            "Artifacts: `accuracy.png` and `heat_map.png` (every client in every round), `partition.png` (who has which",
            "classes), `clients.csv`, `timeline.png` (what ran where, when), `model/` (for `raysim export` and `predict`).",
            "",
        ]
    return "\n".join([*lines, how_to_repeat(commit)])


def describe_study(
    config: Config, runs: int, commit: str | None, run_id: str, view: View | None = None, table: str | None = None
) -> str:
    """The description of a study's own run in MLflow.

    Once it is finished, ``table`` is its comparison in Markdown, and ``view`` what that is about.
    """
    lines = [f"A study of {runs} runs: {what_is_run(config)}", ""]
    if table is not None:
        lines += [f"{view}, percent, mean ± standard deviation over seeds:", "", table, ""]
        lines += [_picture("comparison.png", run_id), ""]
        lines += ["Artifacts: `comparison.png`, `clients.png`, gains over the baselines client by client.", ""]
    return "\n".join([*lines, how_to_repeat(commit)])


def describe_tuning(report: str, pictures: Sequence[str], run_id: str) -> str:
    """The description of a tuning's own run in MLflow: as much of its report as fits, and pictures."""
    lines = report.splitlines()
    fit = int((np.cumsum([len(line) + 1 for line in lines]) <= MOST_LETTERS).sum())
    more = ["", "The rest is in the artifact `tuning.md`."] if fit < len(lines) else []
    return "\n".join([*(_picture(name, run_id) for name in pictures), "", *lines[:fit], *more])


def _picture(artifact: str, run_id: str) -> str:
    """An artifact shown in MLflow's page; the link is relative, so that it works on whatever server shows the page."""
    return f"![{artifact}](get-artifact?path={artifact}&run_uuid={run_id})"


def what_is_run(config: Config) -> str:
    """The data, who trains, for how long, and what is evaluated."""
    data, train = config.data, config.train
    alpha = f", alpha {data.partition.alpha:g}" if data.partition.alpha is not None else ""
    return (
        f"{config.model.name} on {data.name}, {data.num_clients} clients ({data.partition.name}{alpha}), "
        f"{config.cohort_size} per round, {config.rounds} rounds of {train.local_epochs} local epochs. The headline is the "
        f"accuracy {MODELS[headline_of([config])]}, on {clients_of([config])}."
    )


def how_to_repeat(commit: str | None) -> str:
    at = f" at commit `{commit[:10]}`" if commit else ""
    return f"To run it again: save the artifact `config.yaml`, then `raysim run config.yaml`{at}."


def differing(configs: list[Config]) -> list[str]:
    """The dotted keys that all configurations have and in which they differ, without the seed; the algorithm's name first."""
    flat = [dict(flatten(c.model_dump(mode="json", exclude={"study", "name", "seed", "tracking"}))) for c in configs]
    keys = [key for key in flat[0] if all(key in one for one in flat)]
    found = [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]
    return sorted(found, key=lambda key: key != "algorithm.name")


def _results(metrics: Mapping[str, float]) -> str:
    shown = {
        key: value
        for key, value in metrics.items()
        if key.startswith(("personalized/", "aggregated/", "difference/", "global/", "new_clients/"))
    }
    rows = [f"| {key} | {value:.4f} |" for key, value in sorted(shown.items())]
    ends = np.cumsum([len(row) + 1 for row in rows])
    fit = int((ends <= MOST_LETTERS).sum())
    more = [f"| and {len(rows) - fit} more |  |"] if fit < len(rows) else []
    return "\n".join(["| metric | value |", "| --- | ---: |", *rows[:fit], *more])


def headline_of(runs: Sequence[Config]) -> Model:
    """The model that the numbers of these runs are about."""
    return headline(run.evaluate.protocol for run in runs)


def clients_of(runs: Sequence[Config]) -> ClientSet:
    """The clients that the metrics of these runs are about; they agree in ``evaluate.clients``."""
    return ClientSet.asked(runs[0].evaluate.clients, (run.data.num_clients for run in runs))


def title(config: Config) -> str:
    """The first part of a picture's title: the name, and who trains; a ``View`` is the second."""
    return f"{config.name}: {config.cohort_size} of {config.data.num_clients} clients train per round"
