"""YAML files, read safely: only JSON's types, and every mistake is reported with its line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from raysim.errors import ConfigError

MOST_ALIASED = 100_000
"""How many values aliases may repeat in all; otherwise a few lines of nested aliases could expand to billions."""
DEEPEST = 64
"""How deep blocks may be nested."""


class _Loader(yaml.SafeLoader):
    """Safe YAML of JSON's types, in which ``1e-3`` is a number (YAML 1.1 wants ``1.0e-3``) and a repeated key an error."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            known: dict[yaml.Node, tuple[int, int]] = {}
            size, depth = _measure(node, known)
            if size - len(known) > MOST_ALIASED:
                raise yaml.MarkedYAMLError(problem=f"its aliases repeat {size - len(known):,} values")
            if depth > DEEPEST:
                raise RecursionError
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError("the number is too large")
            if isinstance(value, str):
                value.encode()  # "\ud800" is half a character
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"no valid {kind}: {error}", problem_mark=node.start_mark) from error
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`, which may be overridden on purpose
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} appears twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
_JSON = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _JSON
}
_Loader.yaml_constructors["tag:yaml.org,2002:timestamp"] = _Loader.yaml_constructors["tag:yaml.org,2002:str"]


def _measure(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node is with all aliases written out, and how deep; ``known``: those measured before."""
    unfinished = (0, 0)
    if node in known:
        if known[node] == unfinished:
            raise yaml.MarkedYAMLError(
                problem="an alias is inside the block that it refers to", problem_mark=node.start_mark
            )
        return known[node]
    known[node] = unfinished
    inside = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        inside = [part for pair in inside for part in pair]
    parts = [_measure(part, known) for part in inside]
    known[node] = 1 + sum(size for size, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    return known[node]


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\UFFFFFFFF" is an OverflowError of the scanner's
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: not valid YAML: nested too deeply") from error
