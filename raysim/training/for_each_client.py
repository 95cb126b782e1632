"""From a function of one client to a function of the K clients of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raysim.functional.context import ClientContext, ClientData


class EachClient:
    """The K clients of a batch: turns functions of one client into functions of all, with a first axis K.

    It uses ``torch.func.vmap``; for a single client it calls the function directly, without the cost of a transform.

    Args:
        data: of the clients, each entry (K, ...).
        known: whether these are the clients' data; if not (the run's data are not loaded), ``ctx.client`` is refused.
    """

    def __init__(self, data: ClientData, known: bool = True) -> None:
        self._data, self._known, self.num_clients = data, known, len(data.num_samples)

    def __call__(self, context: ClientContext, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function(ctx, *tensors)`` of one client, which gets the context as that client sees it, for all of them."""

        def of_one(data: ClientData, *args: Any) -> Any:
            return function(context.of(data) if self._known else context, *args)

        mapped = torch.func.vmap(of_one, randomness="different") if self.num_clients > 1 else _directly(of_one)
        return lambda *args: mapped(self._data, *args)


def _directly(function: Callable[..., Any]) -> Callable[..., Any]:
    def one(*args: Any) -> Any:
        return tree_map(lambda t: t.unsqueeze(0), function(*tree_map(lambda t: t.squeeze(0), args)))

    return one


def select(active: Tensor, new: Any, old: Any) -> Any:
    """For two equal trees of tensors (K, ...): the new values where ``active`` (K,) is true, else the old."""
    return tree_map(lambda n, o: torch.where(active.view(-1, *[1] * (n.dim() - 1)), n, o), new, old)
