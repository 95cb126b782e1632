"""What a tuning will do: a search for each entry of the study, all of it checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from difflib import get_close_matches

from raysim.analysis.tuning import Setting
from raysim.config.dotted import flatten
from raysim.config.fingerprint import algorithm_digest
from raysim.config.loading import children
from raysim.config.schema import Config
from raysim.data.loading import load_data
from raysim.data.partition import Partition
from raysim.errors import ConfigError
from raysim.experiments.preparation import check
from raysim.experiments.tuning.space import LR, Space, space_of
from raysim.own_code import is_own
from raysim.script_source import MAIN
from raysim.storage.study_folder import FIXED
from raysim.views import FAMILIES, OF_CLIENTS, VALIDATION, validation_names


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
    assert config.tune is not None
    free = {"space": "auto"}
    if child.tune is None or child.tune.model_copy(update=free) != config.tune.model_copy(update=free):
        raise ConfigError(
            f"study entry {entry!r}: of tune, an entry may change the space only: every entry has the same budget"
        )
    plain = child.model_copy(update={"name": entry, "seed": config.tune.seeds[0]})
    check(plain.model_copy(update={"tune": None}))
    partitions = _partitions(plain)
    _check_metric(plain, partitions)
    space = space_of(entry, plain, auto=config.tune.space == "auto")
    facts = [algorithm_digest(plain), *(partition.digest for partition in partitions)]
    alone = {LR: space[LR]} if config.tune.lr_only and LR in space else {}
    if not alone or alone == space:
        return [_plan(entry, "tuned", plain, space, facts)]
    return [_plan(entry, "lr only", plain, alone, facts), _plan(entry, "tuned", plain, space, facts)]


def _partitions(config: Config) -> list[Partition]:
    """Those of the seeds of the trials; none of a data set of the user's own, which may take long."""
    assert config.tune is not None
    if is_own(config.data.name):
        return []
    seeded = (config.model_copy(update={"seed": seed}) for seed in config.tune.seeds)
    return [load_data(one, pixels=False)[1] for one in seeded]


def _check_metric(config: Config, partitions: list[Partition]) -> None:
    assert config.tune is not None
    metric = config.tune.metric
    if not metric.startswith(f"{VALIDATION}/"):
        return
    own = bool(config.data.validation_fraction)
    if not own and (config.data.partition.name != "file" or any(p.num_validation is None for p in partitions)):
        raise ConfigError(f"tune.metric: {metric} needs validation samples: set data.validation_fraction, such as 0.2")
    families = [VALIDATION, *(name for model in FAMILIES for name in validation_names(model, headline=False))]
    known = [f"{family}/{name}" for family in families for name in OF_CLIENTS]
    if metric not in known and not config.evaluate.metrics:  # whose names are not known
        close = get_close_matches(metric, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"tune.metric: no run logs {metric}{hint}")


def _plan(entry: str, setting: Setting, config: Config, space: Space, facts: list[str]) -> Plan:
    """Its name has a digest of all that the trials depend on, but for the pixels: after a change another search begins."""
    resources = {
        key: value for key, value in flatten(config.resources.model_dump()) if FIXED.fullmatch(f"resources.{key}")
    }
    free = {"name", "tracking", "checkpoint", "resources", "study"}
    what = [config.model_dump(mode="json", exclude=free), resources, {key: repr(s) for key, s in space.items()}, facts]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return Plan(entry, setting, config, space, f"{entry}, {setting}, {digest}")
