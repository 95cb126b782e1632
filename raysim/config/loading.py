"""From a YAML file and dotted overrides to a checked ``Config``, and from a study to its children.

Precedence: file, then command line, then study entry.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raysim.config.schema import AlgorithmBlockError, Config
from raysim.config.dotted import flatten, nested
from raysim.errors import ConfigError

Raw = dict[str, Any]
WHO_TRAINS = {"fraction", "size", "schedule"}  # keys of ``cohort``, of which a file has one

MOST_ALIASED = 100_000
"""Values that aliases may repeat; a few lines of aliases of aliases would otherwise be billions."""
DEEPEST = 64
"""Blocks inside each other."""
MOST_TOLD = 50
"""Problems of a file."""


class _Loader(yaml.SafeLoader):
    """Safe YAML of JSON's types, in which ``1e-3`` is a number (YAML 1.1 wants ``1.0e-3``) and a repeated key an error."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            known: dict[yaml.Node, tuple[int, int]] = {}
            size, depth = _measure(node, known)
            if size - len(known) > MOST_ALIASED:
                raise yaml.MarkedYAMLError(problem=f"its aliases repeat {size - len(known):,} values")
            if depth > DEEPEST:
                raise RecursionError
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError("the number is too large")
            if isinstance(value, str):
                value.encode()  # "\ud800" is half a character
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"no valid {kind}: {error}", problem_mark=node.start_mark) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, which may be overridden on purpose
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} appears twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_JSON = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _JSON
}
_Loader.yaml_constructors["tag:yaml.org,2002:timestamp"] = _Loader.yaml_constructors["tag:yaml.org,2002:str"]


def _measure(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node is with all aliases written out, and how deep; ``known``: those measured before."""
    unfinished = (0, 0)
    if node in known:
        if known[node] == unfinished:
            raise yaml.MarkedYAMLError(
                problem="an alias stands inside what it stands for", problem_mark=node.start_mark
            )
        return known[node]
    known[node] = unfinished
    inside = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        inside = [part for pair in inside for part in pair]
    parts = [_measure(part, known) for part in inside]
    known[node] = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    return known[node]


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" is an OverflowError of the scanner's
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from error


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides such as ``"train.optimizer.lr=0.1"`` (values in YAML), and check everything.

    All children of a study are checked too.

    Raises:
        ConfigError: the file can't be read, or a key, type or value is wrong; every problem is named with its path.
    """
    where = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: can't be read: {error}") from error
    raw = _parse(text, where)
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must be a mapping of keys such as 'name:' and 'data:', not {type(raw).__name__}")
    return config_of(raw, overrides, where)


def config_of(raw: Raw, overrides: Sequence[str], where: str) -> Config:
    """A configuration from parsed YAML, ``where`` it is from, and overrides; see ``load_config``."""
    given = dict(_parse_override(override) for override in overrides)
    try:
        raw = _merge(raw, nested(given))
    except ValueError as error:
        raise ConfigError(f"command line: {error}") from error
    config = _validate(raw, where, list(given))
    children(config, where)
    _refuse_varied_overrides(config, given)
    return config


def children(config: Config, where: str = "config") -> list[tuple[str, Config]]:
    """The runs of a study as (name of the entry, configuration), or the one run that the configuration is.

    Raises:
        ConfigError: an entry has no name, or what it makes of the file is not valid.
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
            raise ConfigError(f"{at}.seeds: {_shown(seeds)} is not a list of integers such as [0, 1, 2]")
        if len(set(seeds or [])) != len(seeds or []):
            raise ConfigError(f"{at}.seeds: {_shown(seeds)} has a seed twice")
        if seeds is not None and "seed" in entry:
            raise ConfigError(f"{at}: give 'seed' or 'seeds', not both")
        changes = {key: value for key, value in entry.items() if key not in ("name", "seeds")}
        if taken := {"study", "tracking", "checkpoint"} & changes.keys():
            raise ConfigError(f"{at}.{min(taken)}: belongs to the whole study, not to an entry")
        for seed in seeds if seeds is not None else [changes.get("seed", config.seed)]:
            merged = _merge(base, {**changes, "seed": seed}, entry=True)
            result.append((name, _validate({**merged, "name": f"{name} · seed {seed}"}, at)))
    return result


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any], prefix: str = "", entry: bool = False) -> Raw:
    """Mappings are merged key by key, except where keys of the old block would make no sense beside the new ones.

    Of ``cohort`` the keys that say who trains replace each other. Replaced as a whole: ``algorithm`` and ``data.partition``
    if the change names one; ``algorithm`` in a study entry always; ``model.kwargs`` if the change names a model or is empty.
    """
    merged = copy.deepcopy(dict(base))
    for key, value in changes.items():
        path = f"{prefix}{key}"  # the key may be a number, which validation refuses later
        if not (isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)):
            merged[key] = copy.deepcopy(value)
        elif path == "cohort":
            kept = {k: v for k, v in merged[key].items() if not (k in WHO_TRAINS and WHO_TRAINS & value.keys())}
            merged[key] = {**kept, **copy.deepcopy(dict(value))}
        elif (
            (path == "model.kwargs" and (not value or "name" in changes))
            or (path in ("algorithm", "data.partition") and "name" in value)
            or (path == "algorithm" and entry)
        ):
            merged[key] = copy.deepcopy(dict(value))
        else:
            merged[key] = _merge(merged[key], value, f"{path}.", entry)
    return merged


def _parse_override(override: str) -> tuple[str, Any]:
    dotted, equals, value = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"command line: {_shown(override)} is not of the form dotted.key=value")
    if dotted.count(".") >= DEEPEST:
        raise ConfigError(f"command line: {_shown(dotted)}: nested too deeply")
    return dotted, _parse(value, f"command line: {dotted}")


def _refuse_varied_overrides(config: Config, given: Mapping[str, Any]) -> None:
    for i, entry in enumerate(config.study or []):
        varied = [k for k, _ in flatten(entry) if k != "name"] + (["seed"] if "seeds" in entry else [])
        for dotted in given:
            for key, inside in ((k, replaced) for k in varied for replaced in _replaced(k, entry)):
                if dotted != "study" and (
                    f"{dotted}.".startswith(f"{inside}.") or f"{inside}.".startswith(f"{dotted}.")
                ):
                    raise ConfigError(
                        f"command line: {dotted}: study[{i}] ({entry.get('name')}) sets {key} itself, so the override would "
                        "not reach it. Change the entry, or run without the study: study=null"
                    )


def _replaced(key: str, entry: Mapping[str, Any]) -> list[str]:
    """What of the file a study entry that sets ``key`` replaces, as ``_merge`` does it."""
    if key.startswith("algorithm."):
        return ["algorithm"]
    if key.startswith("cohort.") and key.split(".")[1] in WHO_TRAINS:
        return [f"cohort.{name}" for name in sorted(WHO_TRAINS)]
    if key.startswith("data.partition.") and "name" in entry["data"]["partition"]:
        return ["data.partition"]
    return [key]


def _validate(raw: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """``where`` it is from, but for the keys of ``overrides``."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = describe(error, Config)
        more = [f"and {len(problems) - MOST_TOLD} more"] if len(problems) > MOST_TOLD else []
        raise ConfigError(*(f"{_source(p, where, overrides)}: {p}" for p in problems[:MOST_TOLD] + more)) from error


def _source(problem: str, where: str, overrides: Sequence[str]) -> str:
    """Whether a problem is of the command line or of the file."""
    path = re.split("[: ]", problem, maxsplit=1)[0]
    for key in overrides:
        if f"{path}.".startswith((f"{key}.", f"{key}[")) or ("unknown key" in problem and key.startswith(f"{path}.")):
            return "command line"
    return where


def describe(error: ValidationError, schema: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per problem: dotted path, what was given, what is allowed, and the nearest key if it is unknown."""
    lines: list[str] = []
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, AlgorithmBlockError):
            lines += describe(cause.error, cause.cls, f"{prefix}algorithm.")
            continue
        if isinstance(cause, ConfigError):
            lines += cause.problems
            continue
        path = prefix + _dotted(problem["loc"])
        if problem["type"] == "extra_forbidden":
            *block, key = problem["loc"]  # the user's own word, even if it is one of pydantic's
            inside = _dotted(block)
            path = f"{prefix}{inside}{'.' if inside else ''}{key or repr(key)}"
            lines.append(f"{path}: unknown key{_suggestion(problem['loc'], schema)}")
        elif problem["type"] == "missing":
            lines.append(f"{path}: is required")
        elif problem["type"] == "value_error":
            lines.append(f"{path}: {cause}" if path else str(cause))
        else:
            allowed = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys", problem["msg"])
            lines.append(f"{path}: {_shown(problem['input'])} is not allowed: {allowed[0].lower()}{allowed[1:]}")
    return _merge_unions(lines)


def _merge_unions(lines: list[str]) -> list[str]:
    """pydantic reports each branch of a union (``auto`` or a number) on its own; say them in one line."""
    merged: dict[str, list[str]] = {}
    for line in lines:
        head, separator, allowed = line.partition(" is not allowed: ")
        merged.setdefault(head, []).append(allowed if separator else "")
    return [f"{h} is not allowed: {', or '.join(a)}" if any(a) else h for h, a in merged.items()]


def _shown(value: object) -> str:
    """What was given, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _dotted(loc: Sequence[str | int]) -> str:
    """``("cohort", "schedule", 0)`` to ``cohort.schedule[0]``, without pydantic's names of union branches."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not re.fullmatch(r"int|float|str|bool|literal\[.*\]|(constrained|function|list|dict)-?.*\[?.*", part):
            path += f".{part}" if path else part
    return path


def _suggestion(loc: Sequence[str | int], schema: type[BaseModel]) -> str:
    """The nearest valid key, and all valid keys of the block."""
    for part in loc[:-1]:
        annotation = schema.model_fields[str(part)].annotation if str(part) in schema.model_fields else None
        found = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not found:
            return ""
        schema = found[0]
    valid = list(schema.model_fields)
    close = get_close_matches(str(loc[-1]), valid, n=1)
    nearest = f"; did you mean {close[0]!r}?" if close else "."
    return f"{nearest} Valid here: {', '.join(valid)}"


def dump(config: Config) -> str:
    """The configuration as YAML, accepted again by ``load_config``."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
