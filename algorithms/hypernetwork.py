"""A hypernetwork: a network on the server that makes a client's parameters from an embedding of it.

Pure functions of its weights, tensors by name: an MLP with ReLU between its layers, none after the last, and a linear layer
with an output for every generated parameter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raysim.functional.optimizers import Tensors


def linear(outputs: int, inputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias as ``nn.Linear`` draws them."""
    bound = 1 / math.sqrt(inputs)
    weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


def new_hypernetwork(embedding: int, hidden: int, layers: int, output: Tensor, generator: torch.Generator) -> Tensors:
    """Weights for embeddings of this size: a first layer, ``layers`` hidden ones, and the output layer.

    The bias of the output layer is ``output`` (P,), so that every client begins near these parameters.
    """
    weights: Tensors = {}
    for i, inputs in enumerate([embedding] + [hidden] * layers):
        weights[f"W{i}"], weights[f"b{i}"] = linear(hidden, inputs, generator)
    weights["W"], _ = linear(len(output), hidden, generator)
    return {**weights, "b": output.clone()}


def generated(weights: Tensors, embeddings: Tensor) -> Tensor:
    """The parameters (K, P) of clients with these embeddings (K, n)."""
    h = embeddings
    for i in range((len(weights) - 2) // 2):
        h = h.relu() if i else h
        h = h @ weights[f"W{i}"].T + weights[f"b{i}"]
    return h @ weights["W"].T + weights["b"]


def gradients(
    weights: Tensors, embeddings: Tensor, change: Tensor, shares: Tensor, clip_norm: float | None
) -> tuple[Tensors, Tensor]:
    """The gradient of ``sum_k shares[k] <parameters of k, change[k]>`` in the weights and in the embeddings (K, n).

    ``change`` (K, P) is what the clients were sent minus what they made of it: a descent direction of their losses.
    """
    inputs = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    embeddings = embeddings.detach().requires_grad_()
    with torch.enable_grad():
        total = (shares[:, None] * change * generated(inputs, embeddings)).sum()
        *of_weights, of_embeddings = torch.autograd.grad(total, [*inputs.values(), embeddings])
    factor = 1.0
    if clip_norm is not None:
        norm = math.sqrt(sum(float(g.square().sum()) for g in (*of_weights, of_embeddings)))
        factor = min(1.0, clip_norm / (norm + 1e-6))
    return {name: factor * g for name, g in zip(inputs, of_weights, strict=True)}, factor * of_embeddings
