"""Changes to a configuration: ``key=value`` from the command line, and the entries of a study."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from raysim.config.dotted import flatten
from raysim.config.messages import shown
from raysim.config.yaml_file import DEEPEST, parse_yaml
from raysim.errors import ConfigError

WHO_TRAINS = {"fraction", "size", "schedule"}  # keys of ``cohort``; exactly one of them is set


def merge(base: Mapping[str, Any], changes: Mapping[str, Any], prefix: str = "", entry: bool = False) -> dict[str, Any]:
    """Mappings are merged key by key, except where keys of the old block would make no sense beside the new ones.

    In ``cohort``, the keys that say who trains replace each other. Replaced as a whole: ``algorithm`` and
    ``data.partition`` if the change has a ``name``; ``algorithm`` in any study entry; ``model.kwargs`` if the change
    names a model or is empty.
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
            merged[key] = merge(merged[key], value, f"{path}.", entry)
    return merged


def parse_override(override: str) -> tuple[str, Any]:
    dotted, equals, value = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ConfigError(f"command line: {shown(override)} is not of the form dotted.key=value")
    if dotted.count(".") >= DEEPEST:
        raise ConfigError(f"command line: {shown(dotted)}: nested too deeply")
    return dotted, parse_yaml(value, f"command line: {dotted}")


def refuse_varied(study: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> None:
    """Raises ConfigError if an override gives a key that an entry of the study sets itself."""
    for i, entry in enumerate(study):
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
    """The keys of the file that ``merge`` replaces when a study entry sets ``key``."""
    if key.startswith("algorithm."):
        return ["algorithm"]
    if key.startswith("cohort.") and key.split(".")[1] in WHO_TRAINS:
        return [f"cohort.{name}" for name in sorted(WHO_TRAINS)]
    if key.startswith("data.partition.") and "name" in entry["data"]["partition"]:
        return ["data.partition"]
    return [key]
