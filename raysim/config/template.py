"""``raysim init``: a YAML file to start from, with every key, its default and what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from raysim.algorithms import algorithm_class
from raysim.config.json_schema import json_schema, section_of
from raysim.config.loading import config_of
from raysim.config.schema import Config
from raysim.errors import ConfigError

WIDTH = 110
SCHEMA = "raysim.schema.json"

_SMALL_VIT = {"name": "vit_tiny_patch16_224", "image_size": 8}
_SMALL_VIT |= {"kwargs": {"patch_size": 2, "embed_dim": 64, "depth": 2, "num_heads": 2}}
_DIGITS: dict[str, Any] = {
    "rounds": 16,
    "data": {"num_clients": 16, "rotated_domains": True, "partition": {"name": "by_domain", "alpha": 0.3}},
    "model": _SMALL_VIT,
    "train": {"local_epochs": 2, "batch_size": 32, "optimizer": {"name": "adamw", "lr": 0.002}},
    "cohort": {"fraction": 0.5},
}
_PAPER: dict[str, Any] = {
    "rounds": 50,
    "data": {"num_clients": 64, "partition": {"name": "dirichlet", "alpha": 0.1}},
    "model": {"name": "vit_small_patch16_224", "image_size": 224, "pretrained": True},
    "train": {"local_epochs": 10, "batch_size": 64, "optimizer": {"name": "sgd", "lr": 0.01}},
    "cohort": {"fraction": 0.125},
}
_OWN = {**_PAPER, "rounds": 20, "data": {"num_clients": 16, "partition": {"name": "dirichlet", "alpha": 0.5}}}
_OWN |= {"model": {"name": "vit_tiny_patch16_224", "image_size": 32, "kwargs": {"patch_size": 4, "depth": 4}}}
_OWN |= {"train": {"local_epochs": 2, "batch_size": 32, "optimizer": {"name": "adamw", "lr": 0.001}}}
_OWN |= {"cohort": {"fraction": 0.5}}
_PRESETS = {"digits": _DIGITS, "npz": _OWN, "federated_npz": _OWN}
_ROOTS = {"npz": "data.npz", "image_folder": "images", "federated_npz": "federated"}


def write_file(path: Path, data: str, method: str, force: bool = False) -> list[Path]:
    """Write a commented file for a data set and a method, and the schema beside it; returns what was written.

    Raises:
        ConfigError: there is a file already, or no such data set or method.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; --force writes over it")
    text = commented(data, method, path.stem)
    schema = path.parent / SCHEMA
    try:
        path.write_text(text, encoding="utf-8")
        schema.write_text(json_schema(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: can't be written: {error}") from error
    return [path, schema]


def commented(data: str, method: str, name: str) -> str:
    """The text of the commented file that ``write_file`` writes."""
    raw = {"name": name, **_PRESETS.get(data, _PAPER)}
    raw["data"] = {"name": data, **({"root": _ROOTS[data]} if data in _ROOTS else {}), **raw["data"]}
    if data == "federated_npz":
        raw["data"] = {k: v for k, v in raw["data"].items() if k != "partition"}
    raw["algorithm"] = {"name": method}
    if raw["train"]["optimizer"]["name"] not in (allowed := algorithm_class(raw["algorithm"]).local_optimizers):
        raw["train"] = {**raw["train"], "optimizer": {"name": allowed[0], "lr": 0.1}}
    others = [other for other in ("fedavg", "local") if other != method]
    entries: list[dict[str, Any]] = [{"name": method.rpartition(":")[2], "seeds": [0, 1, 2]}]
    entries += [{"name": other, "seeds": [0, 1, 2], "algorithm": {"name": other}} for other in others]
    resolved = config_of({**raw, "study": entries}, [], str(name)).model_dump(
        mode="json"
    )  # what is written must be right
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# {method} on {data}. Keys commented out without a space show their defaults; any key can be changed on the",
        "# command line, too: raysim run FILE train.optimizer.lr=0.1",
        *_block(Config, raw, resolved, "", skip=("study", "algorithm")),
        "",
        "algorithm:",
        *_block(algorithm_class({"name": method}), raw["algorithm"], resolved["algorithm"], "  "),
        "",
        *_comment("Several runs of this file, compared; leave it out for a single one.", ""),
        "study:",
        *(
            f"  - {yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=WIDTH).strip()}"
            for entry in entries
        ),
    ]
    return "\n".join(lines) + "\n"


def _block(
    model: type[BaseModel], given: Mapping[str, Any], resolved: Mapping[str, Any], indent: str, skip: Sequence[str] = ()
) -> Iterator[str]:
    """The keys of a section; those that are not given are commented out, with their default value."""
    for key, field in model.model_fields.items():
        if key in skip:
            continue
        section = section_of(field.annotation)
        if section is not None and isinstance(resolved[key], Mapping):
            inside = list(_block(section, given.get(key, {}), resolved[key], f"{indent}  "))
            live = any(not line.lstrip().startswith("#") for line in inside if line)
            if not indent:
                yield ""
            yield f"{indent}{'' if live else '#'}{key}:"
            yield from inside
            continue
        yield from _comment(field.description or "", indent)
        shown = yaml.safe_dump(given.get(key, resolved[key]), default_flow_style=True, sort_keys=False, width=10**6)
        shown = shown.strip().removesuffix("...").strip()
        yield f"{indent}{'' if key in given else '#'}{key}: {shown}"


def _comment(text: str, indent: str) -> Iterator[str]:
    for line in textwrap.wrap(" ".join(text.replace("``", "`").split()), WIDTH - len(indent)):
        yield f"{indent}# {line}"
