"""FedPerfix: Towards Partial Model Personalization of Vision Transformers in Federated Learning.

G. Sun, M. Mendieta, J. Luo, S. Wu, C. Chen. ICCV 2023. https://arxiv.org/abs/2308.09160

    every self-attention layer:  (q, k, v) = W x + b + scale * (0, up(tanh(down(x))))
    client i:                    (w_i, p_i) = (w, p_i) after local epochs of SGD on its own loss
    server:                      w = sum_i n_i w_i / sum_i n_i

Down and up: the shared part w. Kept by a client: the plugin (``down``, ``up``) and the head, p_i. As costly as
FedAvg, and the plugin. With another ``plugin`` and
other ``personal`` patterns this is any method of a ViT with a plugin: ``plugin: lora, personal: [head], freeze_backbone:
true`` is federated LoRA, in which w is the LoRA alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from raysim.algorithms.base import About, FederatedAlgorithm
from raysim.plugins.registry import PLUGINS


class FedPerfix(FederatedAlgorithm):
    """A personal prefix plugin in every self-attention layer and a personal head; the rest is shared."""

    paper = "https://arxiv.org/abs/2308.09160"
    about = About(
        "partial", sent="all but plugin and head", kept="plugin and head", evaluated="as it is", cost="1 + the plugin"
    )

    plugin: Literal["prefix", "prefix_zero", "prefix_random", "adapter", "prompt", "lora"] = "prefix"
    """``prefix``: FedPerfix; ``prefix_zero``, ``prefix_random``: one linear layer in its place, zero or random at the start;
    ``adapter``: parallel to the MLP; ``prompt``: VPT-deep; ``lora``: on qkv. See ``raysim/plugins``."""
    personal: list[str] = []
    """Patterns of the personal parameters. Default: the plugin and the head, ``[adapter, head]`` for the prefix. The paper
    adds the last block on CIFAR-100: ``blocks.11`` for depth 12. ``[]`` shares everything, the plugin too."""

    @model_validator(mode="before")
    @classmethod
    def _personal_default(cls, raw: Any) -> Any:
        name = raw.get("plugin", "prefix") if isinstance(raw, Mapping) else None
        plugin = PLUGINS.get(name) if isinstance(name, str) else None
        if plugin is None or raw.get("personal") is not None:
            return raw
        return {**raw, "personal": [plugin.component, "head"]}
