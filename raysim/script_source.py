"""The source of what a script or a notebook defines: of a class or function of ``__main__``, and of what it uses there."""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import inspect
import json
import linecache
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from raysim.errors import ConfigError

MAIN = "__main__"
SOURCE = "__raysim_source__"  # attribute of what travels, since its source can't be read where it arrives


def main_source(found: Any) -> str:
    """The sources of a class or function and of what it uses, and the values of the globals that it uses, as one text.

    Raises:
        ConfigError: a source can't be read.
    """
    if (written := vars(found).get(SOURCE)) is not None:
        return str(written)
    texts: dict[str, str] = {}
    seen: dict[int, Any] = {}  # with the objects, so that no other gets the id of one that is gone
    waiting = [("", found)]
    while waiting:  # in an order that is the same in every process
        name, item = waiting.pop()
        if isinstance(item, ModuleType) or id(item) in seen:
            continue
        if inspect.isclass(item) or isinstance(item, FunctionType):
            seen[id(item)] = item
            if item.__module__ == MAIN:
                texts[f"def {item.__qualname__}"] = _text(item)
                waiting += [(f"{item.__qualname__}.{part}", value) for part, value in _parts(item)]
        elif parts := [*_parts(item)]:
            seen[id(item)] = item
            texts[name] = type(item).__qualname__
            waiting += [(f"{name}.{part}", value) for part, value in parts]
        else:
            texts[name] = _value(item)
    return "\n".join(f"# {name}\n{texts[name]}" for name in sorted(texts))


def _text(item: Any) -> str:
    try:
        return textwrap.dedent(inspect.getsource(item))
    except (OSError, TypeError) as error:
        # A class of a notebook: Python looks for it in the file of ``__main__``, which a notebook has not, and not in cells.
        for cell in reversed([*linecache.cache]):
            text = "".join(linecache.getlines(cell))
            with suppress(SyntaxError):
                for node in ast.parse(text).body if item.__qualname__ in text else ():
                    if isinstance(node, ast.ClassDef) and node.name == item.__qualname__:
                        return ast.get_source_segment(text, node) or text
        raise ConfigError(
            f"the source of {item.__qualname__} can't be read, and results depend on it: {error}; put it into a module"
        ) from error


def _value(item: Any) -> str:
    """Of what has no parts; a text with an address in it would be another in every process."""
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu().numpy()
    if isinstance(item, np.ndarray) and not item.dtype.hasobject:
        return f"{item.dtype} {item.shape} {hashlib.sha256(np.ascontiguousarray(item).tobytes()).hexdigest()}"
    try:
        return json.dumps(item)
    except (TypeError, ValueError):
        return type(item).__qualname__


def _parts(item: Any) -> Iterator[tuple[str, Any]]:
    """What an object of ``__main__`` depends on, by name: other objects, and values."""
    if isinstance(item, FunctionType):
        if item.__globals__.get("__name__") == MAIN:
            used = sorted(name for name in _globals(item.__code__) if name in item.__globals__)
            yield from ((name, item.__globals__[name]) for name in used)
        names, cells = item.__code__.co_freevars, item.__closure__ or ()
        for name, cell in zip(names, cells, strict=True):
            with suppress(ValueError):  # of a name that has no value yet
                yield name, cell.cell_contents
        yield from ((f"default {i}", value) for i, value in enumerate(item.__defaults__ or ()))
        yield from (item.__kwdefaults__ or {}).items()
        if hasattr(item, "__wrapped__"):
            yield "wrapped", item.__wrapped__
    elif inspect.isclass(item):
        yield from ((base.__qualname__, base) for base in item.__bases__)
        # What pydantic and Python write into a class follows from its source.
        yield from (
            (name, value) for name, value in vars(item).items() if not name.startswith(("__", "_abc", "model_"))
        )
    elif isinstance(item, functools.partial):
        yield from (("func", item.func), ("args", list(item.args)), ("keywords", dict(item.keywords)))
    elif isinstance(item, property):
        yield from ((name, getattr(item, name)) for name in ("fget", "fset") if getattr(item, name) is not None)
    elif isinstance(item, functools.cached_property):
        yield "func", item.func
    elif hasattr(item, "__wrapped__"):  # of functools.lru_cache
        yield "wrapped", item.__wrapped__
    elif isinstance(item, staticmethod | classmethod):
        yield "func", item.__func__
    elif type(item).__module__ == MAIN:
        yield "class", type(item)
        yield from getattr(item, "__dict__", {}).items()


def _globals(code: CodeType) -> set[str]:
    """The global names that it and the functions inside of it read."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_globals(constant) for constant in code.co_consts if isinstance(constant, CodeType)))
