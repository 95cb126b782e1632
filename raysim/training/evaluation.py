"""Evaluate a client batch: each client's own model on its own test samples, or one model on those of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from algorithms import FederatedAlgorithm
from raysim import seeds
from raysim.functional.context import ClientContext
from raysim.functional.loss_and_gradient import FunctionalModel
from raysim.functional.optimizers import Tensors
from raysim.training.for_each_client import for_each_client
from raysim.training.sample_batches import ClientSamples, to_device

Ints = NDArray[np.int64]
# Samples per forward pass of an evaluation, over all clients of the batch: bounds its memory.
EVALUATION_SAMPLES = 512


@dataclass(frozen=True)
class Evaluation:
    """Per client of a batch: how many test samples were classified correctly, and the probabilities of all of them."""

    clients: Ints
    correct: Ints
    num_test: Ints
    probabilities: NDArray[np.float32]
    """(sum of num_test, classes), client after client."""


class Evaluator:
    """Evaluates any clients of a run.

    Args:
        seed: of the run.
    """

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        model: FunctionalModel,
        samples: ClientSamples,
        device: torch.device,
        seed: int,
    ) -> None:
        self._algorithm, self._model, self._samples, self._device = algorithm, model, samples, device
        self._seed = seed

    def clients(
        self, clients: Ints, shared: Tensor, state: Tensors, context: ClientContext, adapt: bool = True
    ) -> Evaluation:
        """Clients (K,) with shared parameters (K, S) and states (each (K, n)), adapted if the algorithm does that."""
        theta = self.personalized(clients, shared, state, context, adapt)
        for_each = for_each_client(len(clients))
        pool = self._samples.test(clients)
        chunk = max(1, EVALUATION_SAMPLES // len(clients))
        logits = for_each(lambda theta, images: context.logits(theta, images))
        with self._model.mode(training=False, vectorised=len(clients) > 1):
            parts = [logits(theta, self._samples.model_input(images)) for images in pool.images.split(chunk, dim=1)]
        probabilities, hits = _classified(torch.cat(parts, dim=1), pool.labels)
        own = to_device(torch.from_numpy(np.arange(pool.labels.shape[1]) < pool.counts[:, None]), self._device)
        correct = (hits & own).sum(dim=1)
        return Evaluation(clients, correct.cpu().numpy(), pool.counts, probabilities[own].cpu().numpy())

    def personalized(
        self, clients: Ints, shared: Tensor, state: Tensors, context: ClientContext, adapt: bool = True
    ) -> Tensor:
        """The parameters (K, P) with which clients are evaluated; without ``adapt``, those before any adaptation."""
        vectorised = len(clients) > 1
        for_each = for_each_client(len(clients))
        with self._model.mode(training=False, vectorised=vectorised):
            theta: Tensor = for_each(lambda shared, state: self._algorithm.personalize(shared, state, context))(
                shared, state
            )
        if not adapt or not self._algorithm.adapt_steps():
            return theta
        with self._model.mode(training=True, vectorised=vectorised):
            return self._adapted(for_each, theta, clients, context)

    def _adapted(self, for_each: Any, theta: Tensor, clients: Ints, context: ClientContext) -> Tensor:
        """Parameters (K, P) after ``adapt`` on the first batch of as many shuffled epochs as there are steps."""
        seeds.seed_torch(self._device, self._seed, "adapt", context.round, int(clients[0]))
        pool, steps = self._samples.training(clients), self._algorithm.adapt_steps()
        order = self._samples.order("adapt", context.round, clients, pool, steps)
        carry = for_each(lambda theta: self._algorithm.adapt_init(theta, context))(theta)
        step = for_each(lambda carry, batch: self._algorithm.adapt(carry, batch, context))
        for epoch in range(steps):
            batch, _ = next(self._samples.batches(pool, order, epoch, 1))
            carry = step(carry, batch)
        adapted: Tensor = carry["theta"]
        return adapted

    def one_model(self, clients: Ints, theta: Tensor) -> Evaluation:
        """One model (P,) on the test samples of all clients, in plain batches."""
        partition = self._samples.partition
        index = partition.tests(clients)
        parts = []
        with self._model.mode(training=False, vectorised=False):
            for start in range(0, len(index), EVALUATION_SAMPLES):
                images, labels = self._samples.data.at(index[start : start + EVALUATION_SAMPLES])
                parts.append(_classified(self._model.logits(theta, self._samples.model_input(images)), labels))
        probabilities, hits = (torch.cat(column) for column in zip(*parts, strict=True))
        counts = partition.num_test[clients]
        correct = np.add.reduceat(hits.long().cpu().numpy(), np.cumsum(counts) - counts)
        return Evaluation(clients, correct, counts, probabilities.cpu().numpy())


def _classified(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (..., classes), and which samples are classified correctly (...).

    A model whose parameters are finite but huge may give NaN: that is a wrong answer with no confidence in any class.
    """
    probabilities = logits.float().softmax(dim=-1)
    hits = (probabilities.argmax(dim=-1) == labels) & probabilities.isfinite().all(dim=-1)
    return probabilities.nan_to_num(0.0), hits
