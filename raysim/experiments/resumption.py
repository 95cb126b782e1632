"""A run that was started before: can it be continued from what it left, or has it finished already?

A run is continued only if everything that its results depend on is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raysim.errors import ConfigError
from raysim.experiments.launch import PlacedRun
from raysim.experiments.results import RunResult
from raysim.storage.checkpoint import Checkpoint, newest
from raysim.storage.folder import Folder
from raysim.storage.study_folder import RunState, differences
from raysim.tracking.tags import versions
from raysim.workers.run_setup import Machine

SOURCES = {
    "data": "the data set",
    "partition": "the division of the data among clients, or into training and test samples",
    "initial": "the initial values of the parameters that train",
    "frozen": "the values of the frozen parameters",
    "algorithm": "the code of the algorithm",
}
"""What results depend on besides the configuration: the keys of ``PlacedRun.digests``, in words."""


def facts_at_start(placed: PlacedRun) -> dict[str, str]:
    """What ``study.json`` keeps of a run that has started: it may be interrupted before its first checkpoint."""
    return {**placed.digests, "clients_per_batch": str(placed.config.resources.clients_per_batch)}


def facts(placed: PlacedRun, machine: Machine) -> dict[str, str]:
    """What checkpoints keep: sources, kind of device, versions."""
    return {**placed.digests, "device": machine.device_name, **versions()}


def newest_checkpoint(folder: Folder, name: str, notify: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint of a run; the user is told about damaged ones."""
    checkpoint, problems = newest(folder)
    for problem in problems:
        notify(f"{name}: a checkpoint is not used: {problem}")
    return checkpoint


def changed_sources(placed: PlacedRun, began: Mapping[str, str]) -> list[str]:
    """Names of the sources that have changed since the run started with the facts ``began``."""
    return [what for key, what in SOURCES.items() if began.get(key) != placed.digests[key]]


def as_checkpointed(placed: PlacedRun, checkpoint: Checkpoint) -> PlacedRun:
    """The run with the ``clients_per_batch`` of its checkpoint.

    Raises:
        ConfigError: the configuration, the data or the algorithm has changed.
    """
    size = checkpoint.manifest.config.get("resources", {}).get("clients_per_batch")
    placed = placed.with_batches_of(size)
    found = differences(checkpoint.manifest.config, placed.config.model_dump(mode="json"))
    found += [f"{what} changed" for what in changed_sources(placed, checkpoint.manifest.facts)]
    if found:
        raise ConfigError(
            *(f"{checkpoint.folder.uri}/{checkpoint.name}: {line}" for line in found),
            "the run can't go on with changes that change its results; start over with `raysim run --fresh`",
        )
    return placed


def finished_before(
    placed: PlacedRun, state: RunState, folder: Folder | None, notify: Callable[[str], None]
) -> RunResult | None:
    """The result of a run that an earlier command finished, from its last checkpoint; None if there is more to do.

    Raises:
        ConfigError: it finished with another configuration, other data or another algorithm.
    """
    if not state.finished or folder is None:
        return None
    checkpoint = newest_checkpoint(folder, state.name, notify)
    if checkpoint is None or not checkpoint.manifest.is_last_of(placed.config.rounds):
        return None
    placed = as_checkpointed(placed, checkpoint)
    notify(f"{state.name}: finished before")
    return RunResult.of(placed, state, checkpoint.records, checkpoint.shared)


def changed_environment(old: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A warning for each version or device that has changed: bits may differ from here on."""
    return [
        f"{key} was {old.get(key)}, is {now[key]}: bits may differ from here on"
        for key in now.keys() - SOURCES.keys()
        if old.get(key) != now[key]
    ]
