"""What is wrong with a configuration, in a line per problem."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import get_args, get_origin

from pydantic import BaseModel, ValidationError

from raysim.config.schema import AlgorithmBlockError
from raysim.errors import ConfigError
from raysim.own_code import OWN


def describe(error: ValidationError, schema: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per problem: dotted path, what was given, what is allowed, and the nearest key if it is unknown."""
    lines: list[str] = []
    for problem in error.errors():
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, AlgorithmBlockError):
            lines += describe(cause.error, cause.cls, f"{prefix}algorithm.")
            continue
        if isinstance(cause, ConfigError):
            lines += cause.problems
            continue
        path = prefix + _dotted(problem["loc"])
        if problem["type"] == "extra_forbidden":
            *block, key = problem["loc"]  # the user's own word, even if it is one of pydantic's
            inside = _dotted(block)
            path = f"{prefix}{inside}{'.' if inside else ''}{key or repr(key)}"
            lines.append(f"{path}: unknown key{_suggestion(problem['loc'], schema)}")
        elif problem["type"] == "missing":
            lines.append(f"{path}: is required")
        elif problem["type"] == "value_error":
            lines.append(f"{path}: {cause}" if path else str(cause))
        elif problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"] == OWN:
            lines.append(f"{path}: {shown(problem['input'])} is not allowed: your own as module:name")
        else:
            allowed = re.sub(r"valid dictionary( or instance of \w+)?", "mapping of keys", problem["msg"])
            lines.append(f"{path}: {shown(problem['input'])} is not allowed: {allowed[0].lower()}{allowed[1:]}")
    return _merge_unions(lines)


def _merge_unions(lines: list[str]) -> list[str]:
    """pydantic reports each branch of a union (``auto`` or a number) on its own; say them in one line."""
    merged: dict[str, list[str]] = {}
    for line in lines:
        head, separator, allowed = line.partition(" is not allowed: ")
        merged.setdefault(head, []).append(allowed if separator else "")
    return [f"{h} is not allowed: {', or '.join(a)}" if any(a) else h for h, a in merged.items()]


def shown(value: object) -> str:
    """What was given, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _dotted(loc: Sequence[str | int]) -> str:
    """``("cohort", "schedule", 0)`` to ``cohort.schedule[0]``, without pydantic's names of union branches."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not re.fullmatch(r"int|float|str|bool|literal\[.*\]|(constrained|function|list|dict)-?.*\[?.*", part):
            path += f".{part}" if path else part
    return path


def _suggestion(loc: Sequence[str | int], schema: type[BaseModel]) -> str:
    """The nearest valid key, and all valid keys of the block."""
    for part in loc[:-1]:
        annotation = schema.model_fields[str(part)].annotation if str(part) in schema.model_fields else None
        # On Python 3.10 list[int] is a type.
        kinds = [t for t in (annotation, *get_args(annotation)) if get_origin(t) is None]
        found = [t for t in kinds if isinstance(t, type) and issubclass(t, BaseModel)]
        if not found:
            return ""
        schema = found[0]
    valid = list(schema.model_fields)
    close = get_close_matches(str(loc[-1]), valid, n=1)
    nearest = f"; did you mean {close[0]!r}?" if close else "."
    return f"{nearest} Valid here: {', '.join(valid)}"
