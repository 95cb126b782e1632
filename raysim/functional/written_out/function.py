"""A written-out model as functions of one client, with rules for ``vmap`` and for autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raysim.functional.written_out.transformer import Output, WrittenOut


def output_of_one(written: WrittenOut, theta: Tensor, images: Tensor, output: Output) -> Tensor:
    """Logits (B, classes) or representations (B, D) of images (B, C, H, W) at parameters (P,)."""
    result: Tensor = _Output.apply(theta[None], images[None], _Call(written, output))[0]
    return result


def gradient_of_one(
    written: WrittenOut, theta: Tensor, images: Tensor, labels: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient (P,) of the mean cross entropy of a batch, and that mean, a scalar."""
    gradient, loss = _Gradient.apply(*(t[None] for t in (theta, images, labels, mask)), written)
    return gradient[0], loss[0]


class _Call:
    """One use of the model, in which the forward pass leaves the way back."""

    def __init__(self, written: WrittenOut, output: Output) -> None:
        self._written, self._output, self._differentiates = written, output, torch.is_grad_enabled()
        self.back: Callable[[Tensor], Tensor] | None = None

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        assert not images.requires_grad, "the written-out model has no gradient with respect to images"
        if not self._differentiates:
            return self._written(theta, images, self._output)
        result, self.back = self._written.with_back(theta.detach(), images, self._output)
        return result


class _Output(torch.autograd.Function):
    """Parameters (K, P) and images (K, B, C, H, W) to logits or representations of K clients."""

    @staticmethod
    def forward(theta: Tensor, images: Tensor, call: _Call) -> Tensor:
        return call(theta, images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _Call], output: Tensor) -> None:
        theta, _, ctx.call = inputs
        ctx.save_for_backward(theta)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _WayBack.apply(gradient, *ctx.saved_tensors, ctx.call), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, theta: Tensor, images: Tensor, call: _Call) -> tuple[Tensor, int]:
        theta, images = _with_clients(info, in_dims, theta, images)
        return _Output.apply(theta, images, call)[:, None], 0


class _WayBack(torch.autograd.Function):
    """The gradient (K, P) from that of the output. It depends on theta: its own derivative is refused, not taken for 0."""

    @staticmethod
    def forward(gradient: Tensor, theta: Tensor, call: _Call) -> Tensor:
        assert call.back is not None
        return call.back(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError(
            "a second derivative of the model is taken, which its written-out gradient has not got: set "
            "`second_derivatives = True` in the method's class"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, gradient: Tensor, theta: Tensor, call: _Call) -> tuple[Tensor, int]:
        gradient, theta = _with_clients(info, in_dims, gradient, theta)
        return _WayBack.apply(gradient, theta, call)[:, None], 0


class _Gradient(torch.autograd.Function):
    """``WrittenOut.gradient``."""

    @staticmethod
    def forward(theta: Tensor, images: Tensor, labels: Tensor, mask: Tensor, written: WrittenOut) -> Any:
        return written.gradient(theta, images, labels, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        gradient, loss = _Gradient.apply(*_with_clients(info, in_dims, *args[:4]), args[4])
        return (gradient[:, None], loss[:, None]), (0, 0)


def _with_clients(info: Any, in_dims: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors (1, ...) of one client, each with the clients' axis at its place, as (K, ...)."""
    moved = (
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, in_dims, strict=False)
    )
    return tuple(t.squeeze(1) for t in moved)
