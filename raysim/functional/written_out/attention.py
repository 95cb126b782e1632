"""Self-attention and the transformer block, of all tokens or only of those whose output is used.

Shapes: K clients, B samples, T tokens of a sample, H heads of d numbers each, D = H d, M = K B H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raysim.functional.written_out.layers import Back, Layer
from raysim.functional.written_out.weights import Weights


@dataclass(frozen=True)
class Attention:
    """Self-attention, x (K, B, T, D) to (K, B, T, D).

    Args:
        qkv: x to queries, keys and values (K, B, T, 3 D), in this order.
        queries, keys_values: the same as two layers, where it can be cut.
    """

    qkv: Layer
    queries: Layer | None
    keys_values: Layer | None
    projection: Layer
    num_heads: int
    scale: float

    def __call__(self, w: Weights, x: Tensor, first: int | None = None) -> tuple[Tensor, Back]:
        """Of the ``first`` tokens only, from their queries and the keys and values of all; None: of all tokens."""
        groups, back_to_tokens = self._heads(w, x, first)
        q_MTd, k_MTd, v_MTd = (part for group in groups for part in group)
        share_MTT = torch.baddbmm(x.new_empty(()), q_MTd, k_MTd.mT, beta=0, alpha=self.scale).softmax(dim=-1)
        y, back_of_projection = self.projection(w, _to_tokens(torch.bmm(share_MTT, v_MTd)[None], x, self.num_heads))

        def back(gradient: Tensor) -> Tensor:
            g_MTd = _to_heads(back_of_projection(gradient), 1, self.num_heads)[0]
            of_share = torch.bmm(g_MTd, v_MTd.mT)
            of_score = torch.ops.aten._softmax_backward_data(of_share, share_MTT, -1, of_share.dtype)
            of_groups = [gradient.new_empty(group.shape) for group in groups]
            of_q, of_k, of_v = (part for group in of_groups for part in group)
            torch.baddbmm(of_q, of_score, k_MTd, beta=0, alpha=self.scale, out=of_q)
            torch.baddbmm(of_k, of_score.mT, q_MTd, beta=0, alpha=self.scale, out=of_k)
            torch.bmm(share_MTT.mT, g_MTd, out=of_v)
            return back_to_tokens(of_groups)

        return y, back

    def _heads(self, w: Weights, x: Tensor, first: int | None) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
        """Queries, keys and values in groups (c, M, T, d) that are computed together, and the way back from such groups."""
        if first is None:
            qkv, back = self.qkv(w, x)
            return [_to_heads(qkv, 3, self.num_heads)], lambda of: back(_to_tokens(of[0], x, self.num_heads))
        if self.queries is None or self.keys_values is None:
            qkv, back = self.qkv(w, x)
            heads = _to_heads(qkv, 3, self.num_heads)

            def back_of_all(of: list[Tensor]) -> Tensor:
                of_q = of[0].new_zeros(heads[:1].shape)
                of_q[:, :, :first] = of[0]
                return back(_to_tokens(torch.cat([of_q, of[1]]), x, self.num_heads))

            return [heads[:1, :, :first].contiguous(), heads[1:]], back_of_all
        q, back_of_q = self.queries(w, x[:, :, :first])
        kv, back_of_kv = self.keys_values(w, x)

        def back_of_both(of: list[Tensor]) -> Tensor:
            of_x = back_of_kv(_to_tokens(of[1], x, self.num_heads))
            of_x[:, :, :first] += back_of_q(_to_tokens(of[0], x, self.num_heads))
            return of_x

        return [_to_heads(q, 1, self.num_heads), _to_heads(kv, 2, self.num_heads)], back_of_both


def _to_heads(x: Tensor, count: int, num_heads: int) -> Tensor:
    """(K, B, T, count * D) to (count, M, T, d)."""
    K, B, T, width = x.shape
    d = width // count // num_heads
    heads = x.reshape(K * B, T, count, num_heads, d).permute(2, 0, 3, 1, 4)
    return heads.reshape(count, K * B * num_heads, T, d)


def _to_tokens(heads: Tensor, x: Tensor, num_heads: int) -> Tensor:
    """(count, M, T, d) to (K, B, T, count * D), for K and B of x (K, B, ...)."""
    count, _, T, d = heads.shape
    K, B = x.shape[:2]
    tokens = heads.view(count, K * B, num_heads, T, d).permute(1, 3, 0, 2, 4)
    return tokens.reshape(K, B, T, count * num_heads * d)


@dataclass(frozen=True)
class Block:
    """A pre-norm transformer block, x (K, B, T, D) to (K, B, T, D), or with ``first`` to (K, B, first, D).

    Args:
        attention: ``Attention``, or any layer.
        after_attention, after_mlp: what comes between a branch and the sum, such as ``LayerScale``.
    """

    norm1: Layer
    attention: Attention | Layer
    after_attention: Layer
    norm2: Layer
    mlp: Layer
    after_mlp: Layer

    def __call__(self, w: Weights, x: Tensor, first: int | None = None) -> tuple[Tensor, Back]:
        kept = x[:, :, :first]
        normal, back_of_norm1 = self.norm1(w, x)
        mixed, back_of_attention = self._attend(w, normal, first)
        mixed, back_of_scale1 = self.after_attention(w, mixed)
        middle = kept + mixed
        normal, back_of_norm2 = self.norm2(w, middle)
        changed, back_of_mlp = self.mlp(w, normal)
        changed, back_of_scale2 = self.after_mlp(w, changed)

        def back(gradient: Tensor) -> Tensor:
            of_middle = gradient + back_of_norm2(back_of_mlp(back_of_scale2(gradient)))
            of_x = back_of_norm1(back_of_attention(back_of_scale1(of_middle)))
            if first is None:
                return of_x + of_middle
            of_x[:, :, :first] += of_middle
            return of_x

        return middle + changed, back

    def _attend(self, w: Weights, x: Tensor, first: int | None) -> tuple[Tensor, Back]:
        if isinstance(self.attention, Attention):
            return self.attention(w, x, first)
        y, back = self.attention(w, x)
        if first is None:
            return y, back

        def back_of_all(gradient: Tensor) -> Tensor:
            of_y = gradient.new_zeros(y.shape)
            of_y[:, :, :first] = gradient
            return back(of_y)

        return y[:, :, :first], back_of_all


@dataclass(frozen=True)
class FirstTokens:
    """A block that returns only the ``first`` tokens."""

    block: Block
    first: int

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        return self.block(w, x, self.first)
