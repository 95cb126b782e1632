"""A user's own code, which a configuration names ``module:name``: importing it, its options, and the source it consists of.

Modules lie beside the YAML file, in the folder of the command, or are installed. What was defined in a script or a notebook
(``__main__:Mine``) can't be imported by another process: Ray sends it by value, with its source as text.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter
from types import FunctionType
from typing import Any, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from raysim.errors import ConfigError
from raysim.script_source import MAIN, SOURCE, main_source

OWN = r"^[^:]+:[^:]+$"
_arrived: dict[str, Any] = {}


def is_own(name: str) -> bool:
    """Whether a name is a user's, ``module:name``."""
    return ":" in name


def is_own_model(name: str) -> bool:
    """Whether the name of a model is a user's, and not one of timm's."""
    return is_own(name) and not name.startswith(("hf-hub:", "hf_hub:", "local-dir:", "local_dir:"))


def imported(name: str, key: str) -> Any:
    """What ``module:name`` stands for.

    Args:
        key: of the configuration, for messages.

    Raises:
        ConfigError: there is no such module, it has no such name, or its import fails; other errors are raised as they are.
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
    except (TypeError, ValueError, AssertionError) as error:
        if module_name and not module_name.startswith("."):  # pydantic would take it for its own, without the traceback
            trace = "".join(traceback.format_exception(error))
            raise ConfigError(f"{key}: importing {module_name!r} failed:\n{trace}") from error
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


def checked_options(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    name: str,
    key: str,
    given: Sequence[str],
    by_name: bool = False,
) -> None:
    """Check the options of a user's function against its signature, as keys of the configuration are checked.

    Args:
        given: the arguments that raysim gives, in their order; ``by_name``: by these names.

    Raises:
        ConfigError: the function does not take these arguments; or an option is unknown, missing, or of another type than its
            annotation says.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {name} has no signature: {error}; wrap it in a function") from error
    kind = {n: p.kind for n, p in parameters.items()}
    positional = [n for n in kind if kind[n] in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    named = [n for n in kind if kind[n] in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    first = [n for n in given if n in named] if by_name else positional[: len(given)]
    takes_any = Parameter.VAR_KEYWORD in kind.values()
    enough = takes_any if by_name else Parameter.VAR_POSITIONAL in kind.values()
    if len(first) < len(given) and not enough:
        how = "by these names" if by_name else "in this order"
        raise ConfigError(
            f"{key}: {name} must take {', '.join(given)}, {how}, and takes {', '.join(parameters) or 'nothing'}"
        )
    left = [n for n in named if n not in first]
    known = ", ".join(left) or "none"
    problems = [
        f"{key}.{n}: {name} needs it" for n in left if parameters[n].default is Parameter.empty and n not in options
    ]
    problems += [
        f"{key}.{n}: {name} has no such option; it has {known}" for n in options if n not in left and not takes_any
    ]
    for option in [n for n in left if n in options]:
        problems += [
            f"{key}.{option}: {problem}" for problem in _mistakes(function, parameters[option], options[option])
        ]
    if problems:
        raise ConfigError(*problems)


def _mistakes(function: Callable[..., Any], parameter: Parameter, value: Any) -> list[str]:
    """How a value differs from the annotation of a parameter, if that says something that can be checked."""
    hint = parameter.annotation
    if isinstance(hint, str):
        inner = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
        alone = type("Annotated", (), {"__annotations__": {"value": hint}})
        try:
            hint = get_type_hints(alone, getattr(inner, "__globals__", {}))["value"]
        except Exception:  # only there for type checkers
            return []
    if hint is Parameter.empty:
        return []
    try:
        try:
            checker = TypeAdapter(hint, config=ConfigDict(strict=True))
        except PydanticUserError:  # a type that brings a configuration of its own
            checker = TypeAdapter(hint)
    except (PydanticUserError, PydanticSchemaGenerationError):  # no type of values that a file can have
        return []
    try:
        checker.validate_json(json.dumps(value))  # as in a file: a list is a tuple, a text a path
    except ValidationError as error:
        return [str(problem["msg"]) for problem in error.errors()]
    return []


# What was defined in a script or a notebook.


@dataclass(frozen=True)
class OwnCode:
    """What another process needs to find a user's code by its names.

    Attributes:
        path: folders from which it can be imported.
        main: what was defined in a script or a notebook, by ``__main__:name``; Ray sends it by value.
    """

    path: tuple[str, ...]
    main: dict[str, Any] = field(default_factory=dict)

    def install(self) -> None:
        """Make it known to this process; no module of the user's takes the place of an installed one."""
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        for name, found in self.main.items():
            _arrived.setdefault(name, found)

    @contextmanager
    def with_sources(self) -> Iterator[None]:
        """For its journey only, since here a later change of what it uses must be seen: sources written into what travels."""
        each = {item for found in self.main.values() for item in getattr(found, "__mro__", (found,))}
        items = [item for item in each if item.__module__ == MAIN]
        for item, source in [(item, main_source(item)) for item in items]:
            setattr(item, SOURCE, source)
        try:
            yield
        finally:
            for item in items:
                delattr(item, SOURCE)


def check_travels(found: Any, name: str, key: str) -> None:
    """Raises a ConfigError if something was defined in a script or a notebook, and is neither a class nor a function."""
    if name.startswith(f"{MAIN}:") and not (inspect.isclass(found) or isinstance(found, FunctionType)):
        raise ConfigError(
            f"{key}: {name!r} is a {type(found).__name__}, which can't travel out of a script or a notebook as classes and "
            "functions do: put it into a module"
        )


def own_code(named: Iterable[tuple[str, str]], dumps: Callable[[Any], bytes]) -> OwnCode:
    """What a configuration names, for other processes.

    Args:
        named: key and ``module:name`` of all that is a user's own.
        dumps: what Ray does to it, tried here.

    Raises:
        ConfigError: something was defined in a script or a notebook, and is neither a class nor a function, or can't travel.
    """
    main: dict[str, Any] = {}
    for key, name in named:
        if not name.startswith(f"{MAIN}:"):
            continue
        found = imported(name, key)
        check_travels(found, name, key)
        name_of(found)
        main_source(found)
        try:
            dumps(found)
        except Exception as error:  # whatever the pickling of what it uses raises
            raise ConfigError(
                f"{key}: {name!r} uses something that can't travel to other processes: {error}"
            ) from error
        main[name] = found
    return OwnCode((os.getcwd(), *(entry for entry in sys.path if entry)), main)
