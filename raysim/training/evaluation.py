"""Evaluate a client batch: each client's own model on the samples held out from it, or one model on those of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim import seeds
from raysim.algorithms import FederatedAlgorithm
from raysim.data.partition import Partition, ranges
from raysim.functional.context import ClientContext
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.optimizers import Tensors
from raysim.training.for_each_client import EachClient, select
from raysim.training.local_training import takes_part
from raysim.training.sample_batches import ClientSamples, to_device

Ints = NDArray[np.int64]
# Samples per forward pass of an evaluation, over all clients of the batch: bounds its memory.
EVALUATION_SAMPLES = 512


@dataclass(frozen=True)
class Evaluation:
    """Per client of a batch: how many test samples were classified correctly, and the probabilities of all of them.

    Attributes:
        clients, correct, num_samples: (K,)
        probabilities: (sum of num_samples, classes), client after client.
        validation: the same of the validation samples, where there is such a split.
    """

    clients: Ints
    correct: Ints
    num_samples: Ints
    probabilities: NDArray[np.float32]
    validation: Evaluation | None = None

    @classmethod
    def of(
        cls, clients: Ints, probabilities: NDArray[np.float32], hits: NDArray[np.bool_], data: Partition
    ) -> Evaluation:
        """From all samples that are held out from clients (K,), client after client: probabilities, and which were hit."""
        held_out, num_test = data.num_held_out[clients], data.num_test[clients]
        starts = np.cumsum(held_out) - held_out
        if data.num_validation is None:
            return cls(clients, np.add.reduceat(hits, starts, dtype=np.int64), num_test, probabilities)
        parts = []
        for start, counts in ((starts, held_out - num_test), (starts + held_out - num_test, num_test)):
            rows = ranges(start, counts)
            correct = np.add.reduceat(hits[rows], np.cumsum(counts) - counts, dtype=np.int64)
            parts.append(cls(clients, correct, counts, probabilities[rows]))
        validation, test = parts
        return replace(test, validation=validation)

    @classmethod
    def joined(cls, parts: Sequence[Evaluation], clients: Ints) -> Evaluation:
        """Those of other clients each, in the order of clients (K,)."""
        validations = [part.validation for part in parts if part.validation is not None]
        have, correct, counts = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("clients", "correct", "num_samples")
        )
        order = np.argsort(have)[np.argsort(np.argsort(clients))]
        rows = ranges((np.cumsum(counts) - counts)[order], counts[order])
        probabilities = np.concatenate([part.probabilities for part in parts])[rows]
        validation = cls.joined(validations, clients) if validations else None
        return cls(have[order], correct[order], counts[order], probabilities, validation)


def evaluates_one_model(algorithm: FederatedAlgorithm, num_personal: int, adapt: bool = True) -> bool:
    """Whether all clients are evaluated with the same parameters, the shared ones, as they are."""
    own = algorithm.has_own("personalize", "predict", "remember")
    return not (num_personal or own or (adapt and algorithm.adapt_steps()))


class Predictor:
    """K clients as they are evaluated: their parameters, and what else their predictions depend on.

    Attributes:
        theta: (K, P)
    """

    def __init__(
        self,
        algorithm: FederatedAlgorithm,
        model: FunctionalModel,
        each: EachClient,
        context: ClientContext,
        theta: Tensor,
        state: Tensors,
    ) -> None:
        self._model, self._state, self.theta = model, state, theta
        self._many = each.num_clients > 1
        self._predict = each(context, lambda ctx, theta, state, x: algorithm.predict(theta, state, x, ctx))

    def scores(self, images: Tensor) -> Tensor:
        """Model input (K, B, C, H, W) to scores (K, B, classes)."""
        with self._model.mode(training=False, vectorised=self._many):
            result: Tensor = self._predict(self.theta, self._state, images)
        return result


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
        predictor = self.predictor(clients, shared, state, context, adapt)
        pool = self._samples.held_out(clients)
        images = pool.images.split(_chunk(clients), dim=1)
        with self._model.mode(training=False, vectorised=len(clients) > 1):
            scores = torch.cat([predictor.scores(self._samples.model_input(part)) for part in images], dim=1)
        probabilities, hits = _classified(scores, pool.labels)
        own = to_device(torch.from_numpy(np.arange(pool.labels.shape[1]) < pool.counts[:, None]), self._device)
        rows, hit = (part[own].cpu().numpy() for part in (probabilities, hits))
        return Evaluation.of(clients, rows, hit, self._samples.partition)

    def predictor(
        self, clients: Ints, shared: Tensor, state: Tensors, context: ClientContext, adapt: bool = True
    ) -> Predictor:
        """Clients (K,) as they are evaluated; without ``adapt``, as they are before any adaptation."""
        algorithm, context = self._algorithm, replace(context, phase="evaluate")
        indices = self._samples.training_indices(clients)
        each = EachClient(self._samples.client_data(indices), known=any(map(len, indices)))
        with self._model.mode(training=False, vectorised=each.num_clients > 1):
            theta = each(context, lambda ctx, shared, state: algorithm.personalize(shared, state, ctx))(shared, state)
        if adapt and algorithm.adapt_steps():
            with self._model.mode(training=True, vectorised=each.num_clients > 1):
                theta = self._adapted(each, theta, state, clients, context)
        if algorithm.has_own("remember"):
            with self._model.mode(training=False, vectorised=each.num_clients > 1):
                state = state | self._remembered(each, theta, clients, context)
        return Predictor(algorithm, self._model, each, context, theta, state)

    def _adapted(
        self, each: EachClient, theta: Tensor, state: Tensors, clients: Ints, context: ClientContext
    ) -> Tensor:
        """Parameters (K, P) after ``adapt`` on the first batch of as many shuffled epochs as there are steps."""
        algorithm, steps = self._algorithm, self._algorithm.adapt_steps()
        context = replace(context, phase="adapt")
        seeds.seed_torch(self._device, self._seed, "adapt", context.round, int(clients[0]))
        part = takes_part(algorithm, each, state, ["adapt"] * steps, context)
        pool = self._samples.training(clients)
        order = self._samples.order("adapt", context.round, clients, pool, steps)
        carry = each(context, lambda ctx, theta, state: algorithm.adapt_init(theta, state, ctx))(theta, state)
        for epoch in range(steps):
            if not part[:, epoch].any():
                continue
            now = replace(context, epoch=epoch)
            batch, _ = next(self._samples.batches(pool, order, epoch, 1))
            new = each(now, lambda ctx, carry, batch: algorithm.adapt(carry, batch, ctx))(carry, batch)
            goes_on = to_device(torch.from_numpy(part[:, epoch]), self._device)
            carry = new if part[:, epoch].all() else select(goes_on, new, carry)
        adapted: Tensor = carry["theta"]
        return adapted

    def _remembered(self, each: EachClient, theta: Tensor, clients: Ints, context: ClientContext) -> Tensors:
        """What the algorithm remembers of the clients' training samples, each (K, n, ...), and their mask (K, n)."""
        remember = each(context, lambda ctx, theta, batch: self._algorithm.remember(theta, batch, ctx))
        batches = list(self._samples.stored(self._samples.training(clients), _chunk(clients)))
        parts = [remember(theta, batch) for batch in batches]
        found = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
        return {**found, "remembered": torch.cat([batch.mask for batch in batches], dim=1)}

    def one_model(self, clients: Ints, theta: Tensor) -> Evaluation:
        """One model (P,) on the held out samples of all clients, in plain batches."""
        partition = self._samples.partition
        index = partition.indices[
            ranges((partition.offsets[:-1] + partition.num_train)[clients], partition.num_held_out[clients])
        ]
        parts = []
        with self._model.mode(training=False, vectorised=False):
            for start in range(0, len(index), EVALUATION_SAMPLES):
                images, labels = self._samples.data.at(index[start : start + EVALUATION_SAMPLES])
                parts.append(_classified(self._model.logits(theta, self._samples.model_input(images)), labels))
        probabilities, hits = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        return Evaluation.of(clients, probabilities, hits, partition)


def _chunk(clients: Ints) -> int:
    """How many samples of each client go through the model at a time."""
    return max(1, EVALUATION_SAMPLES // len(clients))


def _classified(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (..., classes), and which samples are classified correctly (...).

    A model whose parameters are finite but huge may give NaN: that is a wrong answer with no confidence in any class.
    """
    probabilities = logits.float().softmax(dim=-1)
    hits = (probabilities.argmax(dim=-1) == labels) & probabilities.isfinite().all(dim=-1)
    return probabilities.nan_to_num(0.0), hits
