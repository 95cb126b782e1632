"""From a function of one client to a function of the K clients of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


def for_each_client(num_clients: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that turns a function of one client into one of K clients, with a first axis K.

    It uses ``torch.func.vmap``; for a single client it calls the function directly, without the cost of a transform.
    """
    if num_clients > 1:
        return lambda function: torch.func.vmap(function, randomness="different")

    def directly(function: Callable[..., Any]) -> Callable[..., Any]:
        def one(*args: Any) -> Any:
            return tree_map(lambda t: t.unsqueeze(0), function(*tree_map(lambda t: t.squeeze(0), args)))

        return one

    return directly


def select(active: Tensor, new: Any, old: Any) -> Any:
    """For two equal trees of tensors (K, ...): the new values where ``active`` (K,) is true, else the old."""
    return tree_map(lambda n, o: torch.where(active.view(-1, *[1] * (n.dim() - 1)), n, o), new, old)
