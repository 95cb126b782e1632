"""A study as a grid: every combination of values, less those that are excluded, plus those that are added."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from raysim.config.dotted import nested

MOST_RUNS = 10_000


def expand(grid: Mapping[str, Any], algorithm: Any) -> list[dict[str, Any]]:
    """From ``{grid, include, exclude}`` to the entries of a study, named by what they vary.

    Args:
        grid: ``grid`` has dotted keys with a list of values each; ``include`` and ``exclude`` are lists of mappings from
            dotted keys to a value: runs that are added, and combinations that are left out (that have all of its values).
        algorithm: the file's own ``algorithm`` block; runs of that algorithm keep its other keys.

    Raises:
        ValueError: ``grid`` does not have this form, or an exclusion matches nothing.
    """
    for key in grid:
        if key not in ("grid", "include", "exclude"):
            raise ValueError(
                f"{key!r} is not a key of a study, which is a list of entries, or has grid, include, exclude"
            )
    axes = grid.get("grid") or {}
    if not isinstance(axes, Mapping) or not all(isinstance(values, list) and values for values in axes.values()):
        raise ValueError(
            "grid: must have a list of values for each dotted key, such as {algorithm.name: [fedavg, local]}"
        )
    include, exclude = (_mappings(grid.get(name) or [], name) for name in ("include", "exclude"))
    if (count := _product(axes)) > MOST_RUNS:
        raise ValueError(f"grid: has {count:,} combinations, more than {MOST_RUNS:,}")
    combinations = (
        [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())] if axes else []
    )
    for left_out in exclude:
        kept = [c for c in combinations if not all(k in c and c[k] == v for k, v in left_out.items())]
        if len(kept) == len(combinations):
            raise ValueError(f"exclude: {left_out} matches no combination of the grid")
        combinations = kept
    if exclude and not combinations and not include:
        raise ValueError("exclude: leaves no combination of the grid")
    for added in include:
        combinations += [{**added, **seed} for seed in _seeds(added, axes)]
    return _entries(combinations, algorithm)


def _mappings(value: Any, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) and item for item in value):
        raise ValueError(
            f"{name}: must be a list of mappings from dotted keys to a value, such as [{{algorithm.name: local}}]"
        )
    return value


def _product(axes: Mapping[str, list[Any]]) -> int:
    count = 1 if axes else 0
    for values in axes.values():
        count *= len(values)
    return count


def _seeds(added: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """The seeds of an added run: those of the grid, unless it has one of its own."""
    return [{"seed": seed} for seed in axes["seed"]] if "seed" in axes and "seed" not in added else [{}]


def _entries(combinations: list[dict[str, Any]], algorithm: Any) -> list[dict[str, Any]]:
    """One entry for all seeds of the same values; a duplicate is run once."""
    entries: list[tuple[dict[str, Any], list[Any]]] = []
    for combination in combinations:
        values = {key: value for key, value in combination.items() if key != "seed"}
        seed = combination.get("seed")
        for known, seeds in entries:
            if known == values:
                seeds += [seed] if seed not in seeds else []
                break
        else:
            entries.append((values, [seed]))
    for values, seeds in entries:
        if None in seeds and len(seeds) > 1:
            raise ValueError(f"include: {values} is in the grid without a seed: give the grid the seeds, seed: [0, 1]")
    varied = {
        key
        for values, _ in entries
        for key in values
        if any(key not in other or other[key] != values[key] for other, _ in entries)
    }
    result = []
    for values, seeds in entries:
        tree = nested(copy.deepcopy(values))  # keys inside a block are written into it
        own = tree.get("algorithm")
        mine = algorithm if isinstance(algorithm, Mapping) else {}
        if isinstance(own, Mapping) and own.get("name", mine.get("name")) == mine.get("name"):
            tree["algorithm"] = {**mine, **own}  # the file's algorithm keeps the file's keys
        entry = {"name": _name(values, varied) or mine.get("name", "run"), **tree}
        result.append(entry if seeds == [None] else {**entry, "seeds": seeds})
    return result


def _name(values: Mapping[str, Any], varied: set[str]) -> str:
    """``fedperfix lr=0.1``: the algorithm by its name, other keys by their last component."""
    words: list[str] = []
    for key, value in values.items():
        if key in ("algorithm", "algorithm.name"):
            words.insert(0, str(value.get("name") if isinstance(value, Mapping) else value))
            value = {k: v for k, v in value.items() if k != "name"} if isinstance(value, Mapping) else {}
            words += [f"{k}={v}" for k, v in value.items()]
        elif key in varied:
            words.append(f"{key.rpartition('.')[2]}={value}")
    return " ".join(words)
