"""What is searched for an entry: from ``tune.space``, or what its method declares, to Optuna's distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel

from raysim.config.loading import config_of
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.search_space import Range, Tuned

Space = dict[str, Range | list[Any]]
LR = "train.optimizer.lr"
LEARNING_RATES = {
    "sgd": Range(1e-3, 1.0, log=True),
    "adam": Range(1e-4, 0.1, log=True),
    "adamw": Range(1e-4, 0.1, log=True),
}
"""What ``auto`` searches for ``train.optimizer.lr``; of an optimiser of one's own the whole of both."""
TUNABLE = ("algorithm.", "model.", "train.", "data.augment")
"""How keys begin that a tuning may choose; the others say what is to be learnt, by whom, and at what cost."""
NOT_TUNABLE = ("algorithm.name", "model.pretrained", "model.weights", "model.image_size", "train.patience")


def with_values(config: Config, values: Mapping[str, Any], where: str) -> Config:
    """The configuration with other values of dotted keys, and nothing else changed.

    Raises:
        ConfigError: one is not allowed.
    """
    raw = config.model_dump(mode="json")
    for key, value in values.items():
        *path, last = key.split(".")
        block = raw
        for name in path:
            if not isinstance(block.get(name), dict):
                block[name] = {}
            block = block[name]
        block[last] = value
    return config_of(raw, [], where)


def changes(config: Config, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """``with_values`` as keys of a study's entry: each block that has a value as a whole, since parts would be merged."""
    raw = with_values(config, values, where).model_dump(mode="json")
    return {block: raw[block] for block in dict.fromkeys(key.partition(".")[0] for key in values)}


def space_of(entry: str, config: Config, auto: bool = False) -> Space:
    """The space of an entry, whose own configuration this is.

    Args:
        auto: whether that of the file is ``auto``, to which an entry adds its keys.

    Raises:
        ConfigError: the entry has no such key, or it may not have such a value.
    """
    assert config.tune is not None
    given: Space = {} if config.tune.space == "auto" else dict(config.tune.space)
    problems = [text for key, own in given.items() if (text := _problem(config, key, own, entry)) is not None]
    if problems:
        raise ConfigError(*problems)
    if given and not auto:
        return given
    space: Space = {LR: LEARNING_RATES.get(config.train.optimizer.name, Range(1e-4, 1.0, log=True))}
    space |= {key: found for key, found in _declared(config).items() if _fits(config, key, found)}
    return space | given


def distributions(config: Config, space: Space) -> dict[str, BaseDistribution]:
    """As Optuna has them: whole numbers where the key takes no others."""
    return {key: _distribution(given, _annotation(config, key)) for key, given in space.items()}


def start_of(config: Config, dists: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """The values that the configuration has now; None if one lies outside of the space."""
    values = {key: _inside(dist, _value(config, key)) for key, dist in dists.items()}
    return None if None in values.values() else values


def _inside(distribution: BaseDistribution, value: Any) -> Any:
    """A value as the distribution has it, None if it has it not; 0 is 0.0, but not false."""
    if isinstance(distribution, CategoricalDistribution):
        same = (c for c in distribution.choices if c == value and isinstance(c, bool) == isinstance(value, bool))
        return next(same, None)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and distribution.low <= value <= distribution.high else None


def _distribution(given: Range | list[Any], annotation: Any) -> BaseDistribution:
    if isinstance(given, list):
        return CategoricalDistribution(given)
    if int in _kinds(annotation) and float not in _kinds(annotation):
        return IntDistribution(int(given.low), int(given.high), log=given.log)
    return FloatDistribution(float(given.low), float(given.high), log=given.log)


def _declared(config: Config) -> Space:
    """By dotted key, the ranges that the entry's method declares beside its keys."""
    found: Space = {}
    for name, field in type(config.algorithm).model_fields.items():
        for tuned in (item for item in field.metadata if isinstance(item, Tuned)):
            if tuned.space is not None:
                found[f"algorithm.{name}"] = tuned.space
    return found


def _fits(config: Config, key: str, space: Range | list[Any]) -> bool:
    """Whether a declared key is one of this configuration: the factor of a plugin is not, where there is no plugin."""
    try:
        with_values(config, {key: _ends(space)[0]}, "")
    except ConfigError:
        return False
    return True


def _ends(space: Range | list[Any]) -> list[Any]:
    return space if isinstance(space, list) else [space.low, space.high]


def _problem(config: Config, key: str, given: Range | list[Any], entry: str) -> str | None:
    at = f"tune.space: {key}"
    if not f"{key}.".startswith(TUNABLE) or key in NOT_TUNABLE:
        return f"{at}: can't be tuned; what can is under algorithm., model. and train., and data.augment"
    annotation = _annotation(config, key)
    if annotation is None:
        return (
            f"{at}: the entry {entry!r} ({config.algorithm.name}) has no such key; give it to those entries that have it, "
            "as `tune: {space: ...}` of the entry"
        )
    whole = int in _kinds(annotation) and float not in _kinds(annotation)
    if isinstance(given, Range):
        if not _kinds(annotation) & {int, float}:
            return f"{at}: takes no numbers, so give a list of values"
        if whole and (given.low != int(given.low) or given.high != int(given.high)):
            return f"{at}: takes whole numbers only, and its range goes from {given.low:g} to {given.high:g}"
    for value in _ends(given):
        try:
            with_values(config, {key: int(value) if whole and isinstance(given, Range) else value}, at)
        except ConfigError as error:
            return f"{at}: {value!r} is not allowed for the entry {entry!r}: {'; '.join(error.problems)}"
    return None


def _annotation(config: Config, key: str) -> Any:
    """The type of a dotted key; None if there is no such value in the configuration."""
    *path, last = key.split(".")
    block: Any = config
    for name in path:
        block = getattr(block, name, None) if isinstance(block, BaseModel) else None
    if isinstance(block, dict):  # kwargs and options: whatever a constructor takes
        return type(block.get(last, 0.0))
    field = type(block).model_fields.get(last) if isinstance(block, BaseModel) else None
    return None if field is None or isinstance(getattr(block, last), BaseModel) else field.annotation


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation."""
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*(_kinds(part) for part in inner))


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value
