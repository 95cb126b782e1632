"""Visual prompt tuning, deep: learned tokens that join the sequence in every block and are dropped after it.

Source: Jia et al. 2022, VPT-deep, https://arxiv.org/abs/2203.12119. For tokens x (B, N, D) and prompts p (T, D)::

    block(x, p)[:N]

Self-attention does not depend on the order of its tokens, so the prompts go to the end of the sequence (the paper has them
after the class token, which is the same function).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from raysim.errors import ConfigError
from raysim.plugins.attach_points import blocks


def add_prompt(model: nn.Module, num_tokens: int | None, depth: int | None = None) -> None:
    """Give the last ``depth`` blocks ``num_tokens`` learned tokens each, ``<block>.prompt`` (T, D), in place.

    Raises:
        ConfigError: the model has no such blocks. Blocks that don't take a sequence are refused in the first forward pass.
    """
    assert num_tokens is not None
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (16, 16))
    for block in blocks(model, depth):
        attention: Any = block.attn
        dim = attention.qkv.in_features
        prompt = nn.Parameter(torch.empty(num_tokens, dim))
        bound = math.sqrt(6 / (3 * math.prod(patch) + dim))  # as in the paper's code: Xavier for the patch embedding
        nn.init.uniform_(prompt, -bound, bound)
        block.register_parameter("prompt", prompt)
        block.register_forward_pre_hook(_join)
        block.register_forward_hook(_drop)


def _join(block: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *rest = inputs
    if x.dim() != 3:
        raise ConfigError(
            f"algorithm.plugin: prompts need blocks that take a sequence (B, N, D), but {type(block).__name__} takes "
            f"{tuple(x.shape)}; take another plugin, or a vit_*, deit_* or cait_* model"
        )
    return (torch.cat([x, block.prompt.expand(len(x), -1, -1)], dim=1), *rest)


def _drop(block: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output[:, : output.shape[1] - len(block.prompt)]
