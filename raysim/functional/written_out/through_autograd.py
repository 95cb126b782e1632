"""A module that is not written out, as a layer: its own forward pass under ``vmap``, and autograd for the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raysim.functional.written_out.layers import Back
from raysim.functional.written_out.weights import Weights


class ThroughAutograd:
    """A module of the model, x (K, B, ...) to (K, B, ...).

    Args:
        names: of its parameters: as the model calls them, by its own names.
    """

    def __init__(self, module: nn.Module, names: dict[str, str]) -> None:
        self._module, self._names = module, names

    def __call__(self, w: Weights, x: Tensor) -> tuple[Tensor, Back]:
        frozen = {own: w[name][0] for own, name in self._names.items() if w.is_frozen(name)}
        trained = {own: w[name] for own, name in self._names.items() if not w.is_frozen(name)}
        with torch.set_grad_enabled(w.goes_back):
            leaves = {own: tensor.detach().requires_grad_() for own, tensor in trained.items()}
            x = x.detach().requires_grad_()
            y = self._called(leaves, frozen, x.clone())  # a module may work in place

        def back(gradient: Tensor) -> Tensor:
            inputs = [x, *leaves.values()]  # the graph is kept for another way back, and goes with this function
            of_x, *of_parameters = torch.autograd.grad(y, inputs, gradient, retain_graph=True, allow_unused=True)
            for own, of_parameter in zip(leaves, of_parameters, strict=True):
                place = w.gradient(self._names[own])
                assert place is not None
                place.zero_() if of_parameter is None else place.copy_(of_parameter)
            return torch.zeros_like(x) if of_x is None else of_x

        return y.detach(), back

    def _called(self, own: dict[str, Tensor], frozen: dict[str, Tensor], x: Tensor) -> Tensor:
        def of_one(own: dict[str, Tensor], x: Tensor) -> Any:
            return torch.func.functional_call(self._module, own | frozen, (x,))

        if len(x) == 1:
            result: Tensor = of_one({name: tensor[0] for name, tensor in own.items()}, x[0])[None]
            return result
        many: Tensor = torch.func.vmap(of_one, randomness="different")(own, x)
        return many
