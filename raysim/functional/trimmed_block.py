"""The last block of a ViT without what no output depends on.

With token pooling, only the class token of the last block reaches the classifier. So queries, projection, second norm and
MLP of that block are needed for one of T tokens; keys and values for all. The function and its gradients stay the same.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch.nn.functional as F
from timm.models import deit as timm_deit
from timm.models import vision_transformer as timm_vit
from torch import Tensor, nn

MODELS = (timm_vit.VisionTransformer, timm_deit.VisionTransformerDistilled)


def trim_last_block(model: nn.Module) -> bool:
    """Let the last block return the model's prefix tokens only (class, distillation), in place, if no other is used.

    Returns whether it was done. Afterwards ``forward_features`` gives these tokens only.
    """
    vit: Any = model
    if type(model) not in MODELS or vit.global_pool != "token" or vit.attn_pool is not None:
        return False
    block = vit.blocks[-1]
    if type(block) is not timm_vit.Block or type(block.attn) is not timm_vit.Attention:
        return False
    if _has_hooks(block) or _has_hooks(block.attn) or getattr(block.attn, "gate", None) is not None:
        return False
    block.num_kept = vit.num_prefix_tokens
    block.forward = MethodType(_trimmed, block)
    return True


def _has_hooks(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _trimmed(block: Any, x: Tensor) -> Tensor:
    """``Block.forward`` for the first ``num_kept`` tokens: (B, T, D) to (B, num_kept, D)."""
    kept = x[:, : block.num_kept]
    kept = kept + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x), block.num_kept)))
    result: Tensor = kept + block.drop_path2(block.ls2(block.mlp(block.norm2(kept))))
    return result


def _attend(attention: Any, x: Tensor, kept: int) -> Tensor:
    """``Attention.forward`` for the first ``kept`` tokens: (B, T, D) to (B, kept, D)."""
    q, k, v = (_heads(part, attention.num_heads) for part in _queries_keys_values(attention.qkv, x, kept))
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.fused_attn:
        dropout = attention.attn_drop.p if attention.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        shares = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        mixed = attention.attn_drop(shares) @ v
    mixed = mixed.transpose(1, 2).flatten(2)
    mixed = attention.norm(mixed) if hasattr(attention, "norm") else mixed
    result: Tensor = attention.proj_drop(attention.proj(mixed))
    return result


def _queries_keys_values(qkv: Any, x: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (B, kept, D), keys and values (B, T, D)."""
    if _has_hooks(qkv):  # a plugin sees all tokens
        q, k, v = qkv(x).chunk(3, dim=-1)
        return q[:, :kept], k, v
    width, bias = qkv.out_features // 3, qkv.bias
    q = F.linear(x[:, :kept], qkv.weight[:width], None if bias is None else bias[:width])
    k, v = F.linear(x, qkv.weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    return q, k, v


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, D) to (B, heads, T, D / heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
