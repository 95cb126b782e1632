"""The configuration as JSON Schema, for editors: ``# yaml-language-server: $schema=schema.json`` in a YAML file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from raysim.algorithms import ALGORITHMS, FederatedAlgorithm
from raysim.config.schema import Config


def json_schema() -> str:
    """The JSON Schema of a YAML file; it does not check how keys depend on each other, as loading the file does."""
    schema = Config.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    definitions.pop("FederatedAlgorithm", None)
    for name, cls in ALGORITHMS.items():
        block = cls.model_json_schema()
        definitions |= block.pop("$defs", {})
        block["properties"]["name"] = {"const": name, "description": f"{_first_line(cls)} {cls.paper}".strip()}
        block["required"] = sorted({*block.get("required", []), "name"})
        definitions[f"algorithm {name}"] = block
    own = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
    definitions["algorithm of your own"] = {**own, "description": "module:Class, with its own keys"}
    names = [name for name in definitions if name.startswith("algorithm ")]
    schema["properties"]["algorithm"] = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]}
    schema["properties"]["study"]["anyOf"].append(_GRID)
    schema["properties"]["callbacks"]["items"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/CallbackConfig"}]}
    schema["title"] = "raysim"
    return json.dumps(schema, indent=1) + "\n"


_GRID = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "grid": {
            "type": "object",
            "additionalProperties": {"type": "array", "minItems": 1},
            "description": "lists of values by dotted keys, seed among them; every combination is a run",
        },
        "include": {"type": "array", "items": {"type": "object"}, "description": "runs that are added"},
        "exclude": {"type": "array", "items": {"type": "object"}, "description": "combinations that are left out"},
    },
}


def keys() -> Iterator[str]:
    """All dotted keys, those of every algorithm among them."""
    seen: dict[str, None] = dict.fromkeys(_keys_of(Config, ""))
    for cls in ALGORITHMS.values():
        seen |= dict.fromkeys(_keys_of(cls, "algorithm."))
    yield from seen


def _keys_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not field.annotation:  # a value, or also a value
            yield f"{prefix}{name}"
        if section is not None:
            yield from _keys_of(section, f"{prefix}{name}.")


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The class of a block of keys, None for a value, and for a list of blocks."""
    if get_origin(annotation) is list:
        return None
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is not None:
            continue  # on Python 3.10 list[int] is a type
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, FederatedAlgorithm):
            return kind
    return None


def _first_line(cls: type[BaseModel]) -> str:
    return (cls.__doc__ or "").split("\n")[0]
