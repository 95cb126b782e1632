"""The layers of a ViT that work on each token by itself, and plugins made of them.

Shapes: K clients, N tokens of all samples of a client, D numbers per token; x is (K, ..., D) with any axes for tokens.
Every layer is called with ``Weights`` and its input, and returns its output and the way back: a function of the gradient
of its output that writes the gradients of its weights and returns that of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from raysim.functional.written_out.weights import Weights

Back = Callable[[Tensor], Tensor]


class Layer(Protocol):
    def __call__(self, w: Weights, x: Tensor, /) -> tuple[Tensor, Back]: ...


def identity(w: Weights, x: Tensor) -> tuple[Tensor, Back]:
    return x, lambda gradient: gradient


@dataclass(frozen=True)
class Linear:
    """``scale * (x W^T + b)``, with the rows of W and b from ``start`` to ``stop``."""

    name: str
    has_bias: bool
    scale: float = 1.0
    start: int = 0
    stop: int | None = None

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        x_KNi = x.flatten(1, -2) if x.dim() > 2 else x[:, None]
        weight = w[f"{self.name}.weight"][:, self.start : self.stop]
        bias = w[f"{self.name}.bias"][:, self.start : self.stop] if self.has_bias else None
        y_KNo = _product(x_KNi, weight.mT, self.scale, bias)

        def back(gradient: Tensor) -> Tensor:
            g_KNo = gradient.flatten(1, -2) if x.dim() > 2 else gradient[:, None]
            self._write_gradients(w, x_KNi, g_KNo)
            return _product(g_KNo, weight, self.scale).view(x.shape)

        return y_KNo.view(*x.shape[:-1], y_KNo.shape[-1]), back

    def _write_gradients(self, w: Weights, x_KNi: Tensor, g_KNo: Tensor) -> None:
        of_weight = w.gradient(f"{self.name}.weight")
        if of_weight is not None:
            of_weight = of_weight[:, self.start : self.stop]
            torch.baddbmm(of_weight, g_KNo.mT, x_KNi, beta=0, alpha=self.scale, out=of_weight)
        of_bias = w.gradient(f"{self.name}.bias") if self.has_bias else None
        if of_bias is not None:
            of_bias = of_bias[:, self.start : self.stop]
            torch.sum(g_KNo, dim=1, out=of_bias)
            if self.scale != 1:
                of_bias.mul_(self.scale)


def _product(a: Tensor, b: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """``scale * (a b + bias)`` for a (K, N, i), b (K or 1, i, o) and bias (K or 1, o)."""
    if len(b) < len(a):  # one matrix for all clients: one product
        y = (a.flatten(0, 1) @ b[0]).view(len(a), a.shape[1], b.shape[-1])
        y = y if bias is None else y.add_(bias[:, None])
        return y if scale == 1 else y.mul_(scale)
    if bias is None:
        return torch.bmm(a, b) if scale == 1 else torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)
    return torch.baddbmm(bias[:, None], a, b, beta=scale, alpha=scale)


@dataclass(frozen=True)
class LayerNorm:
    """``w * (x - mean) / sqrt(variance + eps) + b`` over the last axis."""

    name: str
    eps: float
    has_weight: bool
    has_bias: bool

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        # torch's own kernel takes most of its time per row at small widths; means as products with a vector do not
        x = x.contiguous()
        mean = _mean(x)
        normal = x - mean
        rstd = _mean(normal * normal).add_(self.eps).rsqrt_()
        normal *= rstd
        axes = [1] * (x.dim() - 2)
        weight = w[f"{self.name}.weight"].view(-1, *axes, x.shape[-1]) if self.has_weight else None
        y = normal if weight is None else normal * weight
        if self.has_bias:
            bias = w[f"{self.name}.bias"].view(-1, *axes, x.shape[-1])
            y = y.add_(bias) if weight is not None else y + bias

        def back(gradient: Tensor) -> Tensor:
            self._write_gradients(w, normal, gradient)
            g = gradient if weight is None else gradient * weight
            backward = torch.ops.aten.native_layer_norm_backward
            result: Tensor = backward(g, x, x.shape[-1:], mean, rstd, None, None, [True, False, False])[0]
            return result

        return y, back

    def _write_gradients(self, w: Weights, normal: Tensor, gradient: Tensor) -> None:
        if self.has_weight and (of_weight := w.gradient(f"{self.name}.weight")) is not None:
            torch.sum((gradient * normal).flatten(1, -2), dim=1, out=of_weight)
        if self.has_bias and (of_bias := w.gradient(f"{self.name}.bias")) is not None:
            torch.sum(gradient.flatten(1, -2), dim=1, out=of_bias)


def _mean(x: Tensor) -> Tensor:
    """The mean (..., 1) over the last axis; on a CPU as a matrix-vector product, on a GPU that could be one of TF32."""
    width = x.shape[-1]
    if x.device.type != "cpu":
        return x.mean(dim=-1, keepdim=True)
    return (x.view(-1, width) @ x.new_full((width, 1), 1 / width)).view(*x.shape[:-1], 1)


@dataclass(frozen=True)
class LayerScale:
    """``gamma * x``."""

    name: str

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        gamma = w[f"{self.name}.gamma"].view(-1, *[1] * (x.dim() - 2), x.shape[-1])

        def back(gradient: Tensor) -> Tensor:
            if (of_gamma := w.gradient(f"{self.name}.gamma")) is not None:
                torch.sum((gradient * x).flatten(1, -2), dim=1, out=of_gamma)
            return gradient * gamma

        return x * gamma, back


@dataclass(frozen=True)
class Gelu:
    approximate: str = "none"

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        def back(gradient: Tensor) -> Tensor:
            result: Tensor = torch.ops.aten.gelu_backward(gradient, x, approximate=self.approximate)
            return result

        return torch.nn.functional.gelu(x, approximate=self.approximate), back


def tanh(w: Weights, x: Tensor) -> tuple[Tensor, Back]:
    y = torch.tanh(x)
    return y, lambda gradient: torch.ops.aten.tanh_backward(gradient, y)


def relu(w: Weights, x: Tensor) -> tuple[Tensor, Back]:
    y = torch.relu(x)
    return y, lambda gradient: torch.ops.aten.threshold_backward(gradient, y, 0)


@dataclass(frozen=True)
class Chain:
    """One layer after the other."""

    layers: tuple[Layer, ...]

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        backs = []
        for layer in self.layers:
            x, back = layer(w, x)
            backs.append(back)

        def way_back(gradient: Tensor) -> Tensor:
            for back in reversed(backs):
                gradient = back(gradient)
            return gradient

        return x, way_back


@dataclass(frozen=True)
class Plus:
    """``layer(x)`` with ``extra(x)`` added to all of its outputs, or to the last, if ``extra`` has fewer."""

    layer: Layer
    extra: Layer

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        y, back = self.layer(w, x)
        y = y if isinstance(self.layer, Linear) else y.clone()  # what another layer returns may be in use elsewhere
        extra, back_of_extra = self.extra(w, x)
        width = extra.shape[-1]
        y[..., y.shape[-1] - width :] += extra

        def way_back(gradient: Tensor) -> Tensor:
            return back(gradient) + back_of_extra(gradient[..., gradient.shape[-1] - width :])

        return y, way_back
