"""Fingerprints of what a result depends on besides the configuration's values: arrays, and the source of the algorithm."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algorithms import FederatedAlgorithm
from raysim.config.schema import Config


def array_digest(arrays: Iterable[NDArray[Any]] | Mapping[str, NDArray[Any]]) -> str:
    """The first 16 hex digits of the SHA-256 of arrays: their types, shapes, values, and names if they have names."""
    sha = hashlib.sha256()
    named = sorted(arrays.items()) if isinstance(arrays, Mapping) else [("", array) for array in arrays]
    for name, array in named:
        sha.update(f"{name}{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def algorithm_digest(config: Config) -> str:
    """SHA-256 of the source that the algorithm consists of, as this process imported it.

    That is the whole module of its class and of each base class, and of a user's own also the modules beside it that it
    imports, and those that these import.
    """
    own = [cls for cls in type(config.algorithm).__mro__ if issubclass(cls, FederatedAlgorithm)]
    sources: dict[str, str] = {}
    for cls in own:
        sources |= _sources(sys.modules[cls.__module__])
    return hashlib.sha256(
        "\n".join(f"{name}\n{source}" for name, source in sorted(sources.items())).encode()
    ).hexdigest()


@cache  # what this process imported, even if a file is edited later
def _sources(module: ModuleType) -> dict[str, str]:
    """The source of a module, and of the modules of its user's that it imports, by name."""
    found: dict[str, str] = {}
    waiting = [(module.__name__, inspect.getsource(module))]
    folder = _own_folder(module)
    while waiting:
        name, source = waiting.pop()
        found[name] = source
        for imported in _imports(source, name) if folder is not None else ():
            if imported not in found and (path := _path_in(folder, imported)) is not None:
                waiting.append((imported, path.read_text(encoding="utf-8")))
    return found


def _own_folder(module: ModuleType) -> Path | None:
    """Where modules lie that belong to a user's own: its package, or the folder of its file. None for raysim's own."""
    top = module.__name__.split(".")[0]
    if top in ("algorithms", "raysim"):
        return None
    file = Path(inspect.getfile(sys.modules[top]) if top != module.__name__ else inspect.getfile(module))
    is_installed = file.parent.name in ("site-packages", "dist-packages")  # a single file among everybody's
    return None if is_installed else file.parent


def _imports(source: str, module: str) -> Iterator[str]:
    """The names of all modules that a source may import, wherever in it."""
    package = module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*(part for part in parents if part), *([node.module] if node.module else [])])
            yield from (name for name in (base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)) if name)


def _path_in(folder: Path | None, module: str) -> Path | None:
    """The Python file of a module, if it lies in a folder or below."""
    # First its package's: looking for a submodule imports the package, and one that lies elsewhere need not be imported.
    for name in dict.fromkeys((module.split(".")[0], module)):
        path = _origin(name)
        if folder is None or path is None or not path.is_relative_to(folder):
            return None
    return path


def _origin(module: str) -> Path | None:
    """The Python file of a module, if it has one."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):  # a name that is no module
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.origin.endswith(".py") else None
