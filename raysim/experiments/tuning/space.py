"""What is searched for an entry: from ``tune.space``, or what its method declares, to Optuna's distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel

from raysim.config.dotted import nested
from raysim.config.loading import config_of
from raysim.config.overrides import merge
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
    """The configuration with other values of dotted keys.

    Raises:
        ConfigError: one is not allowed.
    """
    return config_of(merge(config.model_dump(mode="json"), nested(dict(values))), [], where)


def space_of(entry: str, config: Config) -> Space:
    """The space of an entry, whose own configuration this is.

    Raises:
        ConfigError: the entry has no such key, or it may not have such a value.
    """
    assert config.tune is not None
    if config.tune.space == "auto":
        space = {LR: LEARNING_RATES.get(config.train.optimizer.name, Range(1e-4, 1.0, log=True))}
        return {**space, **{key: found for key, found in _declared(config).items() if _fits(config, key, found)}}
    problems = [
        problem
        for key, given in config.tune.space.items()
        if (problem := _problem(config, key, given, entry)) is not None
    ]
    if problems:
        raise ConfigError(*problems)
    return dict(config.tune.space)


def distributions(config: Config, space: Space) -> dict[str, BaseDistribution]:
    """As Optuna has them: whole numbers where the key takes no others."""
    return {key: _distribution(given, _annotation(config, key)) for key, given in space.items()}


def start_of(config: Config, dists: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """The values that the configuration has now; None if one lies outside of the space."""
    values = {key: _value(config, key) for key in dists}
    return values if all(_contains(dists[key], value) for key, value in values.items()) else None


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(type(value) is type(choice) and value == choice for choice in distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return isinstance(value, int | float) and distribution.low <= value <= distribution.high


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
    if isinstance(block, dict):  # model.kwargs: whatever timm's constructor takes
        return type(block.get(last, 0.0)) if path == ["model", "kwargs"] else None
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
