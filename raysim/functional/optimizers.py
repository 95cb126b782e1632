"""SGD, Adam and AdamW as pure functions on the flat vector of a client's parameters, with ``torch.optim``'s arithmetic.

A vectorised batch has K times P numbers, more than a cache holds: what counts is how often they are read and written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        nesterov: sgd: the step is taken along the gradient and ``momentum`` times the new momentum.
        personal: a boolean vector (P,) of the personal parameters, if their learning rate is another, or None.
        personal_factor: that learning rate, in units of ``lr``. It scales the step, whatever the optimiser makes of it.
    """

    name: str
    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    statistics: Tensor | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    nesterov: bool = False
    personal: Tensor | None = None
    personal_factor: float = 1.0

    def of_own_model(self) -> Optimizer:
        """The same for a whole model that a client keeps, all of it at the learning rate of personal parameters."""
        return replace(self, lr=self.lr * self.personal_factor, personal=None, personal_factor=1.0)

    def init(self, theta: Tensor) -> Tensors:
        """The state before the first step, for parameters (P,)."""
        if self.name in ("adam", "adamw"):
            return {"m": torch.zeros_like(theta), "v": torch.zeros_like(theta), "step": theta.new_zeros(())}
        return {"momentum": torch.zeros_like(theta)} if self.momentum else {}

    def step(self, theta: Tensor, gradient: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Parameters (P,), gradient (P,) and state to the next parameters and state."""
        if self.clip_norm is not None:
            gradient = self._clipped(gradient, self.clip_norm)
        new, state = self.update(theta, gradient, state)
        if self.personal is not None:
            new = torch.where(self.personal, theta + self.personal_factor * (new - theta), new)
        return new if self.statistics is None else torch.where(self.statistics, theta - gradient, new), state

    def update(self, theta: Tensor, gradient: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """``step`` without what all optimisers have in common: clipping, and running statistics."""
        if self.name == "adam" and self.weight_decay:
            gradient = torch.add(gradient, theta, alpha=self.weight_decay)
        return (self._adam if self.name in ("adam", "adamw") else self._sgd)(theta, gradient, state)

    def total_weight(self, steps: Tensor) -> Tensor:
        """With which weight all gradients of ``steps`` steps (float) enter the parameters together, in units of lr.

        Without momentum that is the number of steps; with momentum m, a gradient counts (1 - m^k) / (1 - m) where k steps
        are left; with Nesterov's, 1 + m (1 - m^k) / (1 - m). Only of SGD.
        """
        assert self.name == "sgd", "a step of Adam is no multiple of the gradient"
        m = self.momentum
        if not m:
            return steps
        total = (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)
        return steps + m * total if self.nesterov else total

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
            momentum = torch.add(gradient, state["momentum"], alpha=self.momentum)
            state = {"momentum": momentum}
            gradient = torch.add(gradient, momentum, alpha=self.momentum) if self.nesterov else momentum
        return torch.add(theta, gradient, alpha=-self.lr), state

    def _adam(self, theta: Tensor, gradient: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        step = state["step"] + 1
        theta, m, v = _Adam.apply(theta, gradient, state["m"], state["v"], step, self)
        return theta, {"m": m, "v": v, "step": step}


class _Adam(torch.autograd.Function):
    """A step of Adam or AdamW in half the time of its plain formulas, by operations that ``vmap`` has no rules for."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return _adam(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)  # no derivative of a step is ever taken

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        theta, gradient, m, v, step = (
            t.movedim(d, 0) if d is not None else t.expand(info.batch_size, *t.shape)
            for t, d in zip(args[:-1], in_dims, strict=False)
        )
        return _adam(theta, gradient, m, v, step, args[-1]), (0, 0, 0)


def _adam(theta: Tensor, gradient: Tensor, m: Tensor, v: Tensor, step: Tensor, o: Optimizer) -> tuple[Tensor, ...]:
    """Vectors (..., P) and steps taken (...) to the next parameters, m and v."""
    beta1, beta2 = o.betas
    m = torch.lerp(m, gradient, 1 - beta1)
    v = (v * beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # lr * m_hat / (sqrt(v_hat) + eps), with the factors that are one number per client taken out of the vectors
    rate = (o.lr / (1 - beta1**step))[..., None]
    denominator = v.sqrt().mul_((1 - beta2**step).rsqrt()[..., None] / rate).add_(o.eps / rate)
    decay = o.lr * o.weight_decay if o.name == "adamw" else 0.0
    return (theta * (1 - decay)).addcdiv_(m, denominator, value=-1), m, v
