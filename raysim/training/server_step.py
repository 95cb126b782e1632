"""The server step of an algorithm, as a function."""

from __future__ import annotations

import torch
from torch import Tensor

from raysim.algorithms import FederatedAlgorithm
from raysim.errors import ClientError
from raysim.functional.context import ServerContext
from raysim.functional.optimizers import Tensors


def stepped(
    algorithm: FederatedAlgorithm, shared: Tensor, state: Tensors, means: Tensors, context: ServerContext
) -> tuple[Tensor, Tensors]:
    """The shared parameters (S,), float32, and the server's state after its step.

    Running statistics of BatchNorm are always averaged: what moves parameters beyond their mean, such as momentum, would
    make a variance negative.

    Raises:
        ClientError: the new shared parameters are not finite.
    """
    new, state = algorithm.server_step(shared, state, means, context)
    if statistics := context.layout.statistics:
        averaged, _ = context.layout.split(context.layout.mask(statistics))
        new = torch.where(averaged, means["shared"], new)
    new = new.float().clone()
    if not new.isfinite().all():
        raise ClientError(
            f"round {context.round}: the server step of {algorithm.name!r} gives parameters that are not finite, from "
            "uploads that are; its hyperparameters are too large or too small for this task"
        )
    return new, state
