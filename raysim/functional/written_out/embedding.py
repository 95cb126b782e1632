"""The first and the last part of a ViT: images to tokens, and tokens to the representation.

Shapes: K clients, B samples, T tokens of a sample, N of them patches, D numbers of a token; images (K, B, C, H, W).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raysim.functional.written_out.layers import Back
from raysim.functional.written_out.weights import Weights


@dataclass(frozen=True)
class Embedding:
    """Images to tokens: each patch by a linear map, a class token in front, learned positions added.

    Args:
        patch, size: height and width of a patch, and of an image, in pixels.
    """

    patch: tuple[int, int]
    size: tuple[int, int]
    has_bias: bool
    has_class_token: bool
    has_positions: bool

    def __call__(self, w: Weights, images: Tensor) -> tuple[Tensor, Back]:
        assert images.shape[-2:] == self.size, (
            f"images of {tuple(images.shape[-2:])} pixels, the model takes {self.size}"
        )
        patches, grid = _patches(images, *self.patch)
        K, B, N = len(images), images.shape[1], grid
        kernel = w["patch_embed.proj.weight"].flatten(2)
        width = kernel.shape[1]
        first = int(self.has_class_token)
        x = images.new_empty(K, B, first + N, width)
        projected = torch.matmul(patches, kernel.mT).view(K, B, N, width)
        added = w["pos_embed"][:, :, first:] if self.has_positions else None
        if self.has_bias:
            bias = w["patch_embed.proj.bias"][:, None, None]
            added = bias if added is None else added + bias
        if added is None:
            x[:, :, first:] = projected
        else:
            torch.add(projected, added, out=x[:, :, first:])
        if self.has_class_token:
            token = w["cls_token"][:, :, 0]
            x[:, :, 0] = token + w["pos_embed"][:, :, 0] if self.has_positions else token

        def back(gradient: Tensor) -> Tensor:
            self._write_gradients(w, patches, gradient, first)
            return gradient  # of the images, which nobody asks for

        return x, back

    def _write_gradients(self, w: Weights, patches: Tensor, gradient: Tensor, first: int) -> None:
        of_tokens = gradient.sum(dim=1)  # (K, T, D)
        if self.has_positions and (place := w.gradient("pos_embed")) is not None:
            place.copy_(of_tokens[:, None])
        if self.has_class_token and (place := w.gradient("cls_token")) is not None:
            place.copy_(of_tokens[:, None, :1])
        if self.has_bias and (place := w.gradient("patch_embed.proj.bias")) is not None:
            torch.sum(of_tokens[:, first:], dim=1, out=place)
        if (place := w.gradient("patch_embed.proj.weight")) is not None:
            g_KND = gradient[:, :, first:].flatten(1, 2)
            torch.bmm(g_KND.mT, patches, out=place.flatten(2))


def _patches(images: Tensor, height: int, width: int) -> tuple[Tensor, int]:
    """(K, B, C, H, W) to (K, B * patches, C * height * width), and the number of patches."""
    K, B, C, H, W = images.shape
    rows, columns = H // height, W // width
    cut = images[..., : rows * height, : columns * width].reshape(K, B, C, rows, height, columns, width)
    patches = cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(K, B * rows * columns, C * height * width)
    return patches, rows * columns


@dataclass(frozen=True)
class Pool:
    """Tokens (K, B, T, D) to the representation (K, B, D): the class token, or the mean of those after ``prefix``."""

    kind: str
    prefix: int

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        chosen = slice(0, 1) if self.kind == "token" else slice(self.prefix, None)
        count = 1 if self.kind == "token" else x.shape[2] - self.prefix

        def back(gradient: Tensor) -> Tensor:
            of_x = gradient.new_zeros(x.shape)
            of_x[:, :, chosen] = (gradient / count)[:, :, None]
            return of_x

        return x[:, :, chosen].mean(dim=2), back
