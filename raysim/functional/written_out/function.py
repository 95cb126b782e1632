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
        if not self._differentiates:
            return self._written(theta, images, self._output)
        result, self.back = self._written.with_back(theta.detach(), images.detach(), self._output)
        return result


class _Output(torch.autograd.Function):
    """Parameters (K, P) and images (K, B, C, H, W) to logits or representations of K clients."""

    @staticmethod
    def forward(theta: Tensor, images: Tensor, call: _Call) -> Tensor:
        return call(theta, images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, _Call], output: Tensor) -> None:
        theta, images, ctx.call = inputs
        ctx.save_for_backward(theta, images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.needs_input_grad[1]:
            raise RuntimeError(f"a gradient with respect to images is taken, {_NOT_HERE}")
        return _WayBack.apply(gradient, *ctx.saved_tensors, ctx.call), None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, theta: Tensor, images: Tensor, call: _Call) -> tuple[Tensor, int]:
        many, shape = _with_clients(info, in_dims, theta, images)
        return _Output.apply(*many, call).unflatten(0, shape), 0


_NOT_HERE = "which the written-out model has not got: set `second_derivatives = True` in the method's class"


class _WayBack(torch.autograd.Function):
    """The gradient (K, P) from that of the output. It depends on theta: its own derivative is refused, not taken for 0."""

    @staticmethod
    def forward(gradient: Tensor, theta: Tensor, images: Tensor, call: _Call) -> Tensor:
        assert call.back is not None
        return call.back(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise RuntimeError(f"a second derivative of the model is taken, {_NOT_HERE}")

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, gradient: Tensor, theta: Tensor, images: Tensor, call: _Call
    ) -> tuple[Tensor, int]:
        if in_dims[1] is None and in_dims[2] is None:  # several ways back from one forward pass, as in a Jacobian
            each = [_WayBack.apply(one, theta, images, call) for one in gradient.unbind(in_dims[0])]
            return torch.stack(each), 0
        many, shape = _with_clients(info, in_dims, gradient, theta, images)
        return _WayBack.apply(*many, call).unflatten(0, shape), 0


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
        many, shape = _with_clients(info, in_dims, *args[:4])
        gradient, loss = _Gradient.apply(*many, args[4])
        return (gradient.unflatten(0, shape), loss.unflatten(0, shape)), (0, 0)


def _with_clients(info: Any, in_dims: Any, *tensors: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
    """Tensors (n, ...), each with an axis of size m at its place, as (m n, ...); and (m, n). n is 1 but in nested vmaps."""
    moved = [
        t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(tensors, in_dims, strict=False)
    ]
    return [t.flatten(0, 1) for t in moved], (info.batch_size, moved[0].shape[1])
