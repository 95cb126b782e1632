"""Conversion between dotted keys and nested mappings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, with dotted paths. An empty mapping is a leaf."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` to ``{"a": {"b": 1}}``.

    Raises:
        ValueError: a key is set below another key that already has a value.
    """
    tree: dict[str, Any] = {}
    for dotted, value in given.items():
        *parents, last = dotted.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                shown = repr(node)
                raise ValueError(
                    f"{dotted}: an earlier key sets {key!r} to {shown[:200]}{'…' if len(shown) > 200 else ''}"
                )
        node[last] = value
    return tree
