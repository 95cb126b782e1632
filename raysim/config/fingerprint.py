"""Fingerprints of what a result depends on besides the configuration's values: arrays, and the source of the algorithm."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim import own_code
from raysim.algorithms import FederatedAlgorithm
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.script_source import MAIN, main_source


def array_digest(arrays: Iterable[NDArray[Any]] | Mapping[str, NDArray[Any]]) -> str:
    """The first 16 hex digits of the SHA-256 of arrays: their types, shapes, values, and names if they have names."""
    sha = hashlib.sha256()
    named = sorted(arrays.items()) if isinstance(arrays, Mapping) else [("", array) for array in arrays]
    for name, array in named:
        sha.update(f"{name}{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


def algorithm_digest(config: Config) -> str:
    """SHA-256 of the source that the algorithm, and whatever else is a user's own, consists of, as this process imported it.

    That is the whole module of its class and of each base class. Of a user's own module it is also whatever it imports
    from beside it, and what that imports; of a script or a notebook only what the class uses. Neither raysim's other modules
    nor installed packages are part of it: they have versions. Nothing is imported to find this out.
    """
    own = [cls for cls in type(config.algorithm).__mro__ if issubclass(cls, FederatedAlgorithm)]
    sources: dict[str, bytes] = {}
    for cls in own:
        sources |= _sources_of(cls, cls.__module__)
    for key, name in config.own_names:
        # Data have digests of their own, and callbacks change no bit of a round.
        if key not in ("algorithm.name", "data.name", "data.partition.name", "callbacks"):
            sources |= _sources_of(own_code.imported(name, key), name.partition(":")[0])
    sha = hashlib.sha256()
    for name, source in sorted(sources.items()):
        sha.update(f"{name} {len(source)}\n".encode() + source)
    return sha.hexdigest()


def _sources_of(found: Any, module: str) -> dict[str, bytes]:
    if module == MAIN:
        return {own_code.name_of(found): main_source(found).encode()}
    try:
        return _sources(sys.modules[module])
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"the source of the module {module!r} can't be read, and results depend on it: {error}"
        ) from error


@cache  # what this process imported, even if a file is edited later
def _sources(module: ModuleType) -> dict[str, bytes]:
    """The source of a module and, if it is a user's, of the modules beside it that it imports, by name."""
    name, file = module.__name__, Path(inspect.getfile(module))
    found = {name: inspect.getsource(module).encode()}
    top = name.partition(".")[0]
    if top == "raysim":
        return found
    is_package = file.name == "__init__.py"
    folder = file.parents[name.count(".") + is_package]  # that the top-level name lies in
    installed = folder.name in ("site-packages", "dist-packages")  # beside packages that have nothing to do with it
    waiting = [(found[name], name if is_package else name.rpartition(".")[0])]
    while waiting:
        for imported in _imports(*waiting.pop()):
            first = imported.partition(".")[0]
            if _is_raysim(first) or (installed and first != top):
                continue
            for other, path in _files(folder, imported):
                if other not in found:
                    found[other] = path.read_bytes()
                    waiting.append((found[other], other if path.name == "__init__.py" else other.rpartition(".")[0]))
    return found


def _is_raysim(top: str) -> bool:
    """Whether a top-level name is raysim's: ``algorithms``, too, unless it is a user's own."""
    module = sys.modules.get(top)
    return top == "raysim" or (module is not None and module.__name__.startswith("raysim."))


def _imports(source: bytes, package: str) -> Iterator[str]:
    """The names of all modules that a source in a package may import, wherever in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # not imported so far, or the algorithm would not have been
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (name for name in (base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)) if name)


def _files(folder: Path, module: str) -> Iterator[tuple[str, Path]]:
    """The files in a folder that importing a module would run: its own and those of the packages around it."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:end])
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file():
                yield ".".join(parts[:end]), path
                break
