"""What a tuning will do: a search for each entry of the study, all of it checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from raysim.analysis.tuning import Setting
from raysim.config.loading import children
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.preparation import check
from raysim.experiments.tuning.space import LR, Space, space_of
from raysim.script_source import MAIN


@dataclass(frozen=True)
class Plan:
    """One search: an entry, and whether all of its keys are tuned, or the learning rate alone."""

    entry: str
    setting: Setting
    config: Config
    space: Space
    name: str


def plans_of(config: Config) -> list[Plan]:
    """The searches of a configuration, all of it checked.

    Raises:
        ConfigError: see its message.
    """
    if config.tune is None:
        raise ConfigError(
            "tune: there is no such block in the file; it says how many trials, of which seeds, in what space"
        )
    entries: dict[str, Config] = {}
    seeds: set[int] = set()
    for entry, child in children(config):
        entries.setdefault(entry, child)
        seeds.add(child.seed)
    if both := sorted(seeds & set(config.tune.seeds)):
        raise ConfigError(
            f"tune.seeds: {both[0]} is a seed of the study, and nothing that is reported may have been tuned on; take others"
        )
    if any(name.startswith(f"{MAIN}:") for child in entries.values() for _, name in child.own_names):
        raise ConfigError(
            "tune: what is defined in a script or a notebook can't be tuned, since it could not go on; put it into a module"
        )
    plans: list[Plan] = []
    problems: list[str] = []
    for entry, child in entries.items():
        try:
            plans += _of_entry(entry, child, config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return plans


def _of_entry(entry: str, child: Config, config: Config) -> list[Plan]:
    assert child.tune is not None
    assert config.tune is not None
    if child.tune.model_copy(update={"space": "auto"}) != config.tune.model_copy(update={"space": "auto"}):
        raise ConfigError(
            f"study entry {entry!r}: of tune, an entry may change the space only: every entry has the same budget"
        )
    plain = child.model_copy(update={"name": entry, "seed": config.tune.seeds[0]})
    check(plain.model_copy(update={"tune": None}))
    if (
        child.tune.metric.startswith("validation/")
        and not child.data.validation_fraction
        and child.data.partition.name != "file"
    ):
        raise ConfigError(
            f"tune.metric: {child.tune.metric} needs validation samples: set data.validation_fraction, such as 0.2"
        )
    space = space_of(entry, plain)
    alone = {LR: space[LR]} if config.tune.lr_only and LR in space else {}
    if not alone or alone == space:
        return [_plan(entry, "tuned", plain, space)]
    return [_plan(entry, "lr only", plain, alone), _plan(entry, "tuned", plain, space)]


def _plan(entry: str, setting: Setting, config: Config, space: Space) -> Plan:
    """Its name has a digest of all that the trials depend on: after a change another search begins."""
    free = {"name", "tracking", "checkpoint", "resources", "callbacks", "study"}
    what = [config.model_dump(mode="json", exclude=free), {key: repr(given) for key, given in space.items()}]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return Plan(entry, setting, config, space, f"{entry}, {setting}, {digest}")
