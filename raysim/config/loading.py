"""From a YAML file and overrides to a checked ``Config``, and from a study to its runs.

Precedence: file, then command line, then study entry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raysim.config.dotted import nested
from raysim.config.examples import example
from raysim.config.messages import describe, shown
from raysim.config.overrides import merge, parse_override, refuse_varied
from raysim.config.schema import Config
from raysim.config.yaml_file import parse_yaml
from raysim.errors import ConfigError

MOST_PROBLEMS = 50  # of a file that are listed


def load_config(path: str | Path | Config, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or an example that comes with raysim by its name, apply overrides, and check everything.

    Overrides are such as ``"train.optimizer.lr=0.1"``, values in YAML. In place of a file it may be a configuration, of which
    this makes another.

    All children of a study are checked too.

    Raises:
        ConfigError: the file can't be read, or a key, type or value is wrong; every problem is named with its path.
    """
    if isinstance(path, Config):
        return config_of(path.model_dump(mode="json"), overrides, "config")
    where = str(path)
    if not Path(path).exists():
        path = example(where) or path
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{where}: can't be read: there is no such file, nor an example of this name (`raysim examples` lists them)"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: can't be read: {error}") from error
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must be a mapping of keys such as 'name:' and 'data:', not {type(raw).__name__}")
    return config_of(raw, overrides, where)


def config_of(raw: Mapping[str, Any], overrides: Sequence[str], where: str) -> Config:
    """A configuration from parsed YAML, ``where`` it is from, and overrides; see ``load_config``."""
    given = dict(parse_override(override) for override in overrides)
    try:
        raw = merge(raw, nested(given))
    except ValueError as error:
        raise ConfigError(f"command line: {error}") from error
    config = _validate(raw, where, list(given))
    children(config, where)
    refuse_varied(config.study or [], given)
    return config


def children(config: Config, where: str = "config") -> list[tuple[str, Config]]:
    """The runs of a study as (name of the entry, configuration), or the one run that the configuration is.

    Raises:
        ConfigError: an entry has no name, or its configuration is not valid.
    """
    if config.study is None:
        return [(config.name, config)]
    base = config.model_dump(mode="json", exclude={"study"})
    result: list[tuple[str, Config]] = []
    if not config.study:
        raise ConfigError(f"{where}: study: has no entries; leave it out for a single run")
    for i, entry in enumerate(config.study):
        name, seeds = entry.get("name"), entry.get("seeds")
        at = f"{where}: study[{i}]"
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{at}.name: every entry needs a name")
        if any(name == other for other, _ in result):
            raise ConfigError(f"{at}.name: {name!r} is the name of an earlier entry; the names tell the runs apart")
        if seeds is not None and not (isinstance(seeds, list) and seeds and all(type(s) is int for s in seeds)):
            raise ConfigError(f"{at}.seeds: {shown(seeds)} is not a list of integers such as [0, 1, 2]")
        if len(set(seeds or [])) != len(seeds or []):
            raise ConfigError(f"{at}.seeds: {shown(seeds)} has a seed twice")
        if seeds is not None and "seed" in entry:
            raise ConfigError(f"{at}: give 'seed' or 'seeds', not both")
        changes = {key: value for key, value in entry.items() if key not in ("name", "seeds")}
        if taken := {"study", "tracking", "checkpoint"} & changes.keys():
            raise ConfigError(f"{at}.{min(taken)}: belongs to the whole study, not to an entry")
        for seed in seeds if seeds is not None else [changes.get("seed", config.seed)]:
            merged = merge(base, {**changes, "seed": seed}, entry=True)
            result.append((name, _validate({**merged, "name": f"{name} · seed {seed}"}, at)))
    if len(asked := {str(child.evaluate.clients) for _, child in result}) > 1:
        raise ConfigError(
            f"{where}: study: entries differ in evaluate.clients ({', '.join(sorted(asked))}); accuracies of different "
            "clients can't stand in one table"
        )
    return result


def _validate(raw: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Check a configuration; problems are attributed to ``where``, or to the command line for keys of ``overrides``."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = describe(error, Config)
        more = [f"and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
        raise ConfigError(*(f"{_source(p, where, overrides)}: {p}" for p in problems[:MOST_PROBLEMS] + more)) from error


def _source(problem: str, where: str, overrides: Sequence[str]) -> str:
    """Where a problem comes from: the command line or the file."""
    path = re.split("[: ]", problem, maxsplit=1)[0]
    for key in overrides:
        if f"{path}.".startswith((f"{key}.", f"{key}[")) or ("unknown key" in problem and key.startswith(f"{path}.")):
            return "command line"
    return where


def dump(config: Config) -> str:
    """The configuration as YAML, accepted again by ``load_config``."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
