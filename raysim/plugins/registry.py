"""All plugins by name, with the defaults of the keys that a configuration may set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from raysim.errors import ConfigError
from raysim.own_code import imported, is_own
from raysim.plugins.adapter import add_adapter
from raysim.plugins.lora import add_lora
from raysim.plugins.prefix import add_plain_prefix, add_prefix
from raysim.plugins.prompt import add_prompt


@dataclass(frozen=True)
class Plugin:
    """A plugin as a configuration sees it.

    Attributes:
        add: puts it into a model in place; takes the model, ``mid_dim``, ``scale`` and ``depth``.
        component: the dotted component of its parameters' names, for patterns.
        mid_dim, scale: their defaults; None where the plugin has no such key.
    """

    add: Callable[[nn.Module, int | None, float | None, int | None], None]
    component: str
    mid_dim: int | None
    scale: float | None


PLUGINS: dict[str, Plugin] = {
    "prefix": Plugin(add_prefix, "adapter", 256, 1.5),
    "prefix_zero": Plugin(lambda m, _, s, d: add_plain_prefix(m, s, d, zero=True), "adapter", None, 1.5),
    "prefix_random": Plugin(lambda m, _, s, d: add_plain_prefix(m, s, d, zero=False), "adapter", None, 1.5),
    "adapter": Plugin(add_adapter, "adapter", 256, 1.5),
    "prompt": Plugin(lambda m, tokens, _, d: add_prompt(m, tokens, d), "prompt", 10, None),
    "lora": Plugin(add_lora, "lora", 8, 1.0),
}


def plugin_of(name: str) -> Plugin:
    """The plugin that ``algorithm.plugin`` names.

    Raises:
        ConfigError: ``module:name`` that can't be imported, or is no ``Plugin``.
    """
    if not is_own(name):
        return PLUGINS[name]
    found = imported(name, "algorithm.plugin")
    if not isinstance(found, Plugin):
        raise ConfigError(f"algorithm.plugin: {name!r} is a {type(found).__name__}, not a raysim.Plugin")
    return found
