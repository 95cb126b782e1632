"""SGD and AdamW as pure functions on the flat vector of a client's parameters; the arithmetic is that of ``torch.optim``.

A vectorised batch has K times P numbers, more than a cache holds: what counts is how often they are read and written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Optimizer:
    """A client's optimiser. Its state is fresh in every round, as in the paper: it is never sent or kept.

    One of your own is a frozen dataclass derived from it, with ``init`` and ``update``.

    Attributes:
        clip_norm: a gradient whose norm over all parameters is larger is scaled down to this; None: no clipping.
        statistics: a boolean vector (P,) of the entries that are running statistics of BatchNorm, or None. Their
            "gradient" is the change that the batch made, which is applied as it is.
    """

    name: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    statistics: Tensor | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def init(self, theta: Tensor) -> Tensors:
        """The state before the first step, for parameters (P,)."""
        if self.name == "adamw":
            return {"m": torch.zeros_like(theta), "v": torch.zeros_like(theta), "step": theta.new_zeros(())}
        return {"momentum": torch.zeros_like(theta)} if self.momentum else {}

    def step(self, theta: Tensor, gradient: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Parameters (P,), gradient (P,) and state to the next parameters and state."""
        if self.clip_norm is not None:
            gradient = self._clipped(gradient, self.clip_norm)
        new, state = self.update(theta, gradient, state)
        return new if self.statistics is None else torch.where(self.statistics, theta - gradient, new), state

    def update(self, theta: Tensor, gradient: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """``step`` without what all optimisers have in common: clipping, and running statistics."""
        return (self._adamw if self.name == "adamw" else self._sgd)(theta, gradient, state)

    def total_weight(self, steps: Tensor) -> Tensor:
        """With which weight all gradients of ``steps`` steps (float) enter the parameters together, in units of lr.

        Without momentum that is the number of steps; with momentum m, a gradient counts (1 - m^k) / (1 - m) where k steps
        are left. Only of SGD.
        """
        assert self.name == "sgd", "a step of AdamW is no multiple of the gradient"
        m = self.momentum
        return (steps - m * (1 - m**steps) / (1 - m)) / (1 - m) if m else steps

    def _clipped(self, gradient: Tensor, limit: float) -> Tensor:
        """As ``torch.nn.utils.clip_grad_norm_``; running statistics are no part of it."""
        if self.statistics is None:
            return gradient * (limit / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
        norm = torch.linalg.vector_norm(torch.where(self.statistics, 0.0, gradient))
        return torch.where(self.statistics, gradient, gradient * (limit / (norm + 1e-6)).clamp(max=1.0))

    def _sgd(self, theta: Tensor, gradient: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        if self.weight_decay:
            gradient = torch.add(gradient, theta, alpha=self.weight_decay)
        if self.momentum:
            gradient = torch.add(gradient, state["momentum"], alpha=self.momentum)
            state = {"momentum": gradient}
        return torch.add(theta, gradient, alpha=-self.lr), state

    def _adamw(self, theta: Tensor, gradient: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        step = state["step"] + 1
        theta, m, v = _AdamW.apply(theta, gradient, state["m"], state["v"], step, self)
        return theta, {"m": m, "v": v, "step": step}


class _AdamW(torch.autograd.Function):
    """A step of AdamW in half the time of its plain formulas, by operations that ``vmap`` has no rules for."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return _adamw(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)  # no derivative of a step is ever taken

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        theta, gradient, m, v, step = (
            t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape)
            for t, d in zip(args[:-1], in_dims, strict=False)
        )
        return _adamw(theta, gradient, m, v, step, args[-1]), (0, 0, 0)


def _adamw(theta: Tensor, gradient: Tensor, m: Tensor, v: Tensor, step: Tensor, o: Optimizer) -> tuple[Tensor, ...]:
    """Vectors (..., P) and steps taken (...) to the next parameters, m and v."""
    beta1, beta2 = o.betas
    m = torch.lerp(m, gradient, 1 - beta1)
    v = (v * beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # lr * m_hat / (sqrt(v_hat) + eps), with the factors that are one number per client taken out of the vectors
    rate = (o.lr / (1 - beta1**step))[..., None]
    denominator = v.sqrt().mul_((1 - beta2**step).rsqrt()[..., None] / rate).add_(o.eps / rate)
    return (theta * (1 - o.lr * o.weight_decay)).addcdiv_(m, denominator, value=-1), m, v
