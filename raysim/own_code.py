"""A user's own code, which a configuration names ``module:name``: importing it, its options, and the source it consists of.

Modules lie beside the YAML file, in the folder of the command, or are installed. What was defined in a script or a notebook
(``__main__:Mine``) can't be imported by another process: it travels as a pickle, with its source as text.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import linecache
import os
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import CodeType, FunctionType, ModuleType
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from raysim.errors import ConfigError

MAIN = "__main__"
OWN = r"^[^:]+:[^:]+$"
_SOURCE = "__raysim_source__"  # attribute of what travels, since its source can't be read where it arrives
_arrived: dict[str, Any] = {}


def is_own(name: str) -> bool:
    """Whether a name is a user's, ``module:name``, and not one of raysim's or timm's."""
    return ":" in name and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:", "local_dir:"))


def imported(name: str, key: str) -> Any:
    """What ``module:name`` stands for.

    Args:
        key: of the configuration, for messages.

    Raises:
        ConfigError: there is no such module, or it has no such name. What its import raises is raised.
    """
    if name in _arrived:
        return _arrived[name]
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the user's module was found, but not what it imports: their traceback says more
        raise ConfigError(
            f"{key}: there is no module {module_name!r} for {name!r}, neither beside the YAML file nor in the folder in "
            "which the command is given"
        ) from error
    except (TypeError, ValueError) as error:
        if module_name and not module_name.startswith("."):
            raise
        raise ConfigError(f"{key}: {name!r} should be my_module:my_name") from error
    if not hasattr(module, attribute):
        if module_name == MAIN:
            raise ConfigError(
                f"{key}: {name!r} was defined in a script or a notebook, and is not defined in this process. Run its "
                "definition, then go on from there with raysim.resume, or put it into a module"
            )
        where = getattr(module, "__file__", "built in")
        raise ConfigError(f"{key}: the module {module_name!r} ({where}) has no {attribute!r}")
    return getattr(module, attribute)


def own_function(name: str, key: str) -> Callable[..., Any]:
    """The function that ``module:name`` stands for; raises as ``imported``, or a ConfigError if it is something else."""
    found = imported(name, key)
    if not callable(found):
        raise ConfigError(f"{key}: {name!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def name_of(found: Any) -> str:
    """``module:name`` of a class or function.

    Raises:
        ConfigError: it was defined inside a function, so that no name leads to it.
    """
    if "<" in found.__qualname__ or "." in found.__qualname__:
        raise ConfigError(
            f"{found.__qualname__} is defined inside of something else, where no other process finds it: define it at the "
            "top of a module, a script or a notebook"
        )
    return f"{found.__module__}:{found.__qualname__}"


def checked_options(function: Callable[..., Any], options: Mapping[str, Any], name: str, key: str, given: int) -> None:
    """Check the options of a user's function against its signature, as keys of the configuration are checked.

    Args:
        given: how many arguments raysim gives it first.

    Raises:
        ConfigError: an option is unknown, missing, or of another type than its annotation says.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    first = [k for k, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:given]
    by_name = {k: p for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    named = {k: p for k, p in by_name.items() if k not in first}
    problems = [
        f"{key}.{option}: {name} needs it"
        for option, p in named.items()
        if p.default is p.empty and option not in options
    ]
    if unknown := [] if takes_any else [option for option in options if option not in named]:
        problems += [
            f"{key}.{option}: {name} has no such option; it has {', '.join(named) or 'none'}" for option in unknown
        ]
    hints = get_type_hints(function)
    for option in options.keys() & hints.keys():
        try:
            TypeAdapter(hints[option], config=_strict(hints[option])).validate_python(options[option])
        except ValidationError as error:
            problems += [f"{key}.{option}: {problem['msg']}" for problem in error.errors()]
    if problems:
        raise ConfigError(*problems)


def _strict(hint: Any) -> ConfigDict | None:
    """Only a type that brings no configuration of its own (as models and dataclasses do) can be given one."""
    return None if hasattr(hint, "__pydantic_config__") or hasattr(hint, "model_config") else ConfigDict(strict=True)


# What was defined in a script or a notebook.


@dataclass(frozen=True)
class OwnCode:
    """What another process needs to find a user's code by its names.

    Attributes:
        path: folders from which it can be imported.
        main: pickles of what was defined in a script or a notebook, by ``__main__:name``.
    """

    path: tuple[str, ...]
    main: dict[str, bytes] = field(default_factory=dict)

    def install(self) -> None:
        """Make it known to this process; no module of the user's takes the place of an installed one."""
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        for name, pickled in self.main.items():
            if name not in _arrived:
                _arrived[name] = pickle.loads(pickled)


def own_code(named: Iterable[tuple[str, str]], dumps: Callable[[Any], bytes]) -> OwnCode:
    """What a configuration names, for other processes; ``dumps`` pickles by value.

    Args:
        named: key and ``module:name`` of all that is a user's own.

    Raises:
        ConfigError: something was defined in a script or a notebook, and is neither a class nor a function.
    """
    main: dict[str, bytes] = {}
    for key, name in named:
        if name.startswith(f"{MAIN}:"):
            found = imported(name, key)
            if not (inspect.isclass(found) or isinstance(found, FunctionType)):
                raise ConfigError(
                    f"{key}: {name!r} is a {type(found).__name__}, which can't travel out of a script or a notebook as "
                    "classes and functions do: put it into a module"
                )
            with _sources_written_in(found):
                main[name] = dumps(found)
    return OwnCode((os.getcwd(), *(entry for entry in sys.path if entry)), main)


@contextmanager
def _sources_written_in(found: Any) -> Iterator[None]:
    """For its journey only: here a later change of what it uses must be seen."""
    items = [item for item in getattr(found, "__mro__", (found,)) if item.__module__ == MAIN]
    for item, source in [(item, main_source(item)) for item in items]:
        setattr(item, _SOURCE, source)
    try:
        yield
    finally:
        for item in items:
            delattr(item, _SOURCE)


def main_source(found: Any) -> str:
    """The source of a class or function of ``__main__``, and of all that it uses of ``__main__``: other ones, plain values.

    Raises:
        ConfigError: the source can't be read.
    """
    if (written := vars(found).get(_SOURCE)) is not None:
        return str(written)
    sources: dict[str, str] = {}
    waiting: list[Any] = [found]
    while waiting:
        item = waiting.pop()
        if item.__qualname__ in sources:
            continue
        sources[item.__qualname__] = _source_text(item)
        for name, value in _used(item):
            if inspect.isclass(value) or isinstance(value, FunctionType):
                if value.__module__ == MAIN:
                    waiting.append(value)
            elif not isinstance(value, ModuleType):
                sources[name] = _as_text(value)
        waiting += [base for base in getattr(item, "__bases__", ()) if base.__module__ == MAIN]
    return "\n".join(f"# {name}\n{sources[name]}" for name in sorted(sources))


def _source_text(item: Any) -> str:
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


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):  # its text may have an address in it, which is another in every process
        return type(value).__qualname__


def _used(item: Any) -> Iterator[tuple[str, Any]]:
    """The global names that a function, or any function of a class, mentions, with their values."""
    functions = [item] if isinstance(item, FunctionType) else _functions(item)
    for function in functions:
        for name in _names(function.__code__):
            if name in function.__globals__:
                yield name, function.__globals__[name]


def _functions(cls: type) -> Iterator[FunctionType]:
    for value in vars(cls).values():
        inner = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(inner, FunctionType):
            yield inner


def _names(code: CodeType) -> set[str]:
    """Those that it and the functions inside of it mention."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*inner)
