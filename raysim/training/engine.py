"""Train and evaluate a client batch: K clients at once, vectorised, on one device. Knows nothing of Ray.

Algorithms are written for one client. ``ClientEngine`` calls their functions through ``torch.func.vmap`` over the K
clients of a batch, or directly when there is one. Clients of unequal size are padded within each local epoch, so that all
are always in the same epoch: a padded sample has weight 0, and a client that has finished its epoch keeps its carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from algorithms import FederatedAlgorithm
from raysim import seeds
from raysim.training.aggregation import FixedPoint, acceptable, fixed_point, weighted_sum
from raysim.config.schema import Config
from raysim.functional.context import ClientContext
from raysim.training.batching import Order, Pool, Samples, batches, draw_order, to_device
from raysim.data.partitioners import Partition
from raysim.training.transforms import to_model_input
from raysim.models.build import set_fused_attention
from raysim.functional.loss_and_gradient import Batch, Network
from raysim.functional.optimizers import Optimizer, Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.storage.slot_file import StateLayout
from raysim.training.sensitivity import DIRECTIONS, SCALE_BITS, directions
from raysim.training.tasks import Evaluation

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Samples per forward pass of an evaluation, over all clients of the batch: bounds its memory.
EVALUATION_SAMPLES = 512


@dataclass(frozen=True)
class Training:
    """What K clients bring back from a round."""

    clients: Ints
    sums: dict[str, FixedPoint]
    states: NDArray[np.float32]
    """(K, size of the client state)"""
    accepted: NDArray[np.bool_]
    metrics: dict[str, Floats]
    """Each (K,): a client's mean over the samples of all its local steps."""
    squared_updates: dict[str, Floats]
    """Each (K,): squared norm of a client's update per type of layer; for ``raysim.sensitivity``, if asked for."""
    evaluation: Evaluation | None


def layout_of(model: nn.Module, algorithm: FederatedAlgorithm) -> ParameterLayout:
    """What an algorithm shares, keeps personal and freezes of a model.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    return ParameterLayout.of(model, algorithm.personal_patterns(), algorithm.trainable_patterns())


class ClientEngine:
    """Everything that a worker needs to train any client of a run.

    Args:
        model: gives the architecture and the values of frozen parameters; its other values are never used.
        initial: the run's initial parameters (P,), in the order of ``ParameterLayout``.
        images, labels: the whole data set, read only (it may lie in shared memory).
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        initial: Tensor,
        images: NDArray[np.uint8],
        labels: Ints,
        partition: Partition,
        device: str,
    ) -> None:
        self.config, self.partition, self.device = config, partition, torch.device(device)
        self.algorithm: FederatedAlgorithm = config.algorithm
        self.layout = layout_of(model, self.algorithm)
        self._samples = Samples(images, labels, self.device, _data_budget(config, self.device))
        state = self.algorithm.client_state(initial, self.layout)
        self.state_layout = StateLayout.of(state)
        self.initial = initial
        self.initial_state = self.state_layout.pack(state).numpy()
        self._model = model.to(self.device).requires_grad_(False)
        self._fused: bool | None = None
        resources = config.resources
        self._network = Network(self._model, self.layout, resources.precision, resources.compile)
        statistics = self.layout.statistics
        self._statistics = self.layout.mask(statistics).to(self.device) if statistics else None

    @torch.no_grad()
    def train(
        self,
        round: int,
        clients: Ints,
        weights: dict[str, Floats],
        broadcast: Tensors,
        states: NDArray[np.float32],
        messages: Tensors | None = None,
        evaluate: bool = True,
        sensitivity: bool = False,
        pooled: Ints | None = None,
        steps: int | None = None,
        work: Floats | None = None,
        newcomers: bool = False,
    ) -> Training:
        """Train clients (K,) from states (K, size) and sum up their uploads.

        ``weights`` are planned shares (K,) by weighting (``samples``, ``uniform``). A client whose result is not finite
        or out of range is not accepted: it has no part in the sums, keeps its state, and is evaluated as if untrained.
        ``pooled`` are samples to train on in place of the clients' own; then K is 1. ``steps`` ends every local epoch after
        so many. ``work`` (K,) is the share of all its local steps after which a client stops, at least one step.
        ``newcomers`` train for ``evaluate.adapt_epochs`` at the full learning rate: the schedule is that of the federation.
        """
        context = replace(self._context(0 if newcomers else round, broadcast, training=True), round=round)
        epochs = self.config.evaluate.adapt_epochs if newcomers else self.config.train.local_epochs
        before = self._state(states)
        for_each = self._for_each(len(clients))
        self._seed("dropout", round, clients)
        inputs = {**before, **(messages or {})}
        carry = for_each(lambda state: self.algorithm.client_init(state, context))(inputs)
        carry, metrics = self._local_epochs(for_each, carry, context, clients, pooled, steps, work, epochs)
        uploads, after = for_each(lambda carry: self.algorithm.client_final(carry, context))(carry)
        assert uploads.keys() == self.algorithm.uploads.keys(), (
            f"client_final uploads {sorted(uploads)}, but {type(self.algorithm).__name__}.uploads declares "
            f"{sorted(self.algorithm.uploads)}"
        )
        accepted = acceptable(uploads, after, self.algorithm.uploads).cpu().numpy()
        sums = {
            name: weighted_sum(uploads[name], weights[up.weighting], accepted, up.scale_bits)
            for name, up in self.algorithm.uploads.items()
        }
        squares: Tensors = {}
        if sensitivity and len(context.broadcast["shared"]):
            weighting = self.algorithm.uploads["shared"].weighting
            updates = uploads["shared"] - context.broadcast["shared"]
            units, squares = directions(updates, weights[weighting], accepted, self.layout)
            sums[DIRECTIONS] = fixed_point(units, sums["shared"].weight, SCALE_BITS)
        packed, shared = self.state_layout.pack(after), uploads["shared"]
        if not accepted.all():
            keep = torch.from_numpy(accepted).to(self.device)[:, None]
            packed = torch.where(keep, packed, self.state_layout.pack(before))
            shared = torch.where(keep, shared, context.broadcast["shared"])
        evaluation = None
        if evaluate:
            evaluation = self._evaluate(round, clients, shared, self.state_layout.unpack(packed), context)
        return Training(
            clients,
            sums,
            packed.cpu().numpy(),
            accepted,
            {name: value.cpu().numpy() for name, value in metrics.items()},
            {kind: value.double().cpu().numpy() for kind, value in squares.items()},
            evaluation,
        )

    @torch.no_grad()
    def evaluate(self, round: int, clients: Ints, broadcast: Tensors, states: NDArray[np.float32]) -> Evaluation:
        """Evaluate clients (K,) with the shared parameters of ``broadcast`` and their own states (K, size)."""
        context = self._context(round, broadcast, training=False)
        if not self.state_layout.size and not self.algorithm.adapt_steps():
            nothing = self.state_layout.unpack(torch.empty(0, device=self.device))
            theta = self.algorithm.personalize(context.broadcast["shared"], nothing, context)
            return self._evaluate_one(clients, theta)  # all clients have the same parameters
        shared = context.broadcast["shared"].expand(len(clients), -1)
        return self._evaluate(round, clients, shared, self._state(states), context)

    @torch.no_grad()
    def personalized(self, round: int, clients: Ints, broadcast: Tensors, states: Tensors) -> Tensor:
        """The parameters (K, P) with which clients (K,) with states (each (K, n)) are evaluated, adapted if need be."""
        context = self._context(round, broadcast, training=False)
        return self._personalized(round, clients, broadcast["shared"].expand(len(clients), -1), states, context)

    @torch.no_grad()
    def evaluate_global(self, round: int, clients: Ints, broadcast: Tensors) -> Evaluation:
        """Evaluate one model, the shared one, on the test samples of clients (K,); only where everything is shared."""
        assert self.layout.num_personal == 0
        return self._evaluate_one(clients, self._context(round, broadcast, training=False).broadcast["shared"])

    # Inside a batch.

    def _seed(self, purpose: str, round: int, clients: Ints) -> None:
        """For what torch draws itself; ``torch.manual_seed`` asks all kinds of devices, which takes a millisecond."""
        seed = seeds.torch_seed(self.config.seed, purpose, round, int(clients[0]))
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        torch.default_generator.manual_seed(seed)

    def _training_mode(self, training: bool) -> None:
        if self._model.training != training:  # walks through all modules
            self._model.train(training)

    def _fuse_attention(self, fused: bool) -> None:
        if self._fused != fused:
            set_fused_attention(self._model, fused)
            self._fused = fused

    def _context(self, round: int, broadcast: Tensors, training: bool) -> ClientContext:
        self._training_mode(training)
        train = self.config.train
        decay = 0.5 * (1 + np.cos(np.pi * round / self.config.rounds)) if train.schedule == "cosine" else 1.0
        settings = train.optimizer
        optimizer = Optimizer(
            settings.name,
            settings.lr * float(decay),
            settings.momentum,
            settings.weight_decay,
            settings.clip_norm,
            self._statistics,
        )
        return ClientContext(self._network, self.layout, broadcast, optimizer, train.batch_size, round)

    def _state(self, states: NDArray[np.float32]) -> Tensors:
        return self.state_layout.unpack(to_device(torch.from_numpy(states), self.device))

    def _for_each(self, num_clients: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """One client's function to a function over K clients: directly for one client, else through vmap."""
        self._fuse_attention(num_clients == 1)
        if num_clients > 1:
            return lambda f: torch.func.vmap(f, randomness="different")

        def directly(f: Callable[..., Any]) -> Callable[..., Any]:
            def one(*args: Any) -> Any:
                return tree_map(lambda t: t.unsqueeze(0), f(*tree_map(lambda t: t.squeeze(0), args)))

            return one

        return directly

    def _local_epochs(
        self,
        for_each: Any,
        carry: Any,
        context: ClientContext,
        clients: Ints,
        pooled: Ints | None,
        steps: int | None,
        work: Floats | None,
        epochs: int,
    ) -> tuple[Any, Tensors]:
        """All local steps of K clients; returns the last carry and each metric's mean over a client's samples (K,)."""
        phases = self.algorithm.epochs(epochs)
        pool = self._pool(self.partition.train if pooled is None else lambda _: pooled, clients)
        order = self._order("batches", context.round, clients, pool, len(phases))
        left = self._steps_left(pool, len(phases), work)
        totals: Tensors = {}
        seen: Tensors = {}  # per metric: an algorithm may report one in some of its phases only
        for epoch, phase in enumerate(phases):
            now = replace(context, epoch=epoch, phase=phase)
            step = for_each(lambda carry, batch, now=now: self.algorithm.client_step(carry, batch, now))
            for batch, everyone in islice(self._batches(pool, order, epoch, self.algorithm.batches_per_step), steps):
                if left is not None and not left.any():
                    break
                new, metrics = step(carry, batch)
                count = batch.mask.sum(dim=1)
                if left is not None:
                    count, everyone = count * to_device(torch.from_numpy(left > 0), self.device), False
                    left = left - (left > 0) * (batch.mask.cpu().numpy().any(axis=1))
                active = count > 0
                carry = new if everyone else tree_map(lambda n, o, a=active: _select(a, n, o), new, carry)
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + torch.where(active, value * count, 0.0)
                    seen[name] = seen.get(name, 0.0) + count
        return carry, {name: total / seen[name].clamp(min=1) for name, total in totals.items()}

    def _steps_left(self, pool: Pool, epochs: int, work: Floats | None) -> Ints | None:
        """(K,): how many local steps each client does; None if it does all of them."""
        if work is None:
            return None
        size = self.config.train.batch_size * self.algorithm.batches_per_step
        steps: Ints = np.maximum(1, (work * epochs * -(-pool.counts // size)).astype(np.int64))
        return steps

    def _evaluate(
        self, round: int, clients: Ints, shared: Tensor, state: Tensors, context: ClientContext
    ) -> Evaluation:
        """Clients (K,) with shared parameters (K, S) and their states, adapted if the algorithm says so."""
        theta = self._personalized(round, clients, shared, state, context)
        for_each = self._for_each(len(clients))
        self._training_mode(False)
        pool = self._pool(self.partition.test, clients)
        chunk = max(1, EVALUATION_SAMPLES // len(clients))
        logits = for_each(lambda theta, images: context.logits(theta, images))
        parts = [logits(theta, self._input(images)) for images in pool.images.split(chunk, dim=1)]
        probabilities, hits = _classified(torch.cat(parts, dim=1), pool.labels)
        own = to_device(torch.from_numpy(np.arange(pool.labels.shape[1]) < pool.counts[:, None]), self.device)
        correct = (hits & own).sum(dim=1)
        return Evaluation(clients, correct.cpu().numpy(), pool.counts, probabilities[own].cpu().numpy())

    def _personalized(
        self, round: int, clients: Ints, shared: Tensor, state: Tensors, context: ClientContext
    ) -> Tensor:
        """The parameters (K, P) that are evaluated."""
        for_each = self._for_each(len(clients))
        theta = for_each(lambda shared, state: self.algorithm.personalize(shared, state, context))(shared, state)
        if self.algorithm.adapt_steps():
            theta = self._adapted(for_each, theta, round, clients, context)
        result: Tensor = theta
        return result

    def _adapted(self, for_each: Any, theta: Tensor, round: int, clients: Ints, context: ClientContext) -> Tensor:
        """Parameters (K, P) after ``adapt`` on the first batch of as many shuffled epochs as there are steps."""
        self._training_mode(True)
        self._seed("adapt", round, clients)
        pool, steps = self._pool(self.partition.train, clients), self.algorithm.adapt_steps()
        order = self._order("adapt", round, clients, pool, steps)
        step = for_each(lambda theta, batch: self.algorithm.adapt(theta, batch, context))
        for epoch in range(steps):
            batch, _ = next(self._batches(pool, order, epoch, 1))
            theta = step(theta, batch)
        return theta

    def _evaluate_one(self, clients: Ints, theta: Tensor) -> Evaluation:
        """One model (P,) on the test samples of all clients, in plain batches."""
        self._fuse_attention(True)
        self._training_mode(False)
        index = self.partition.tests(clients)
        parts = []
        for start in range(0, len(index), EVALUATION_SAMPLES):
            images, labels = self._samples.at(index[start : start + EVALUATION_SAMPLES])
            parts.append(_classified(self._network.logits(theta, self._input(images)), labels))
        probabilities, hits = (torch.cat(column) for column in zip(*parts, strict=True))
        counts = self.partition.num_test[clients]
        correct = np.add.reduceat(hits.long().cpu().numpy(), np.cumsum(counts) - counts)
        return Evaluation(clients, correct, counts, probabilities.cpu().numpy())

    def _batches(self, pool: Pool, order: Order, epoch: int, batches_per_step: int) -> Iterator[tuple[Batch, bool]]:
        size = self.config.train.batch_size * batches_per_step
        # BatchNorm has no statistics of one sample: a last batch of one is left out (another sample in every epoch).
        least = 1 if self._statistics is None else 2 * batches_per_step
        return batches(pool, order, epoch, size, self.config.model.image_size, least)

    def _input(self, images: Tensor) -> Tensor:
        return to_model_input(images, self.config.model.image_size)

    def _pool(self, split: Callable[[int], Ints], clients: Ints) -> Pool:
        return Pool.gather(self._samples, [split(c) for c in clients.tolist()])

    def _order(self, purpose: str, round: int, clients: Ints, pool: Pool, epochs: int) -> Order:
        augment, side = self.config.data.augment, self._samples.side
        return draw_order(self.config.seed, purpose, round, clients, pool.counts, epochs, augment, side, self.device)


def _data_budget(config: Config, device: torch.device) -> int:
    """Bytes of a device's memory that the data set may take: a quarter of the actor's share of a GPU."""
    if device.type != "cuda":
        return 0
    share = config.resources.num_gpus_per_actor
    assert share != "auto"
    return int(0.25 * min(share, 1) * torch.cuda.get_device_properties(device).total_memory)


def _classified(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (..., classes), and which samples are classified correctly (...).

    A model whose parameters are finite but huge may give NaN: that is a wrong answer with no confidence in any class.
    """
    probabilities = logits.float().softmax(dim=-1)
    hits = (probabilities.argmax(dim=-1) == labels) & probabilities.isfinite().all(dim=-1)
    return probabilities.nan_to_num(0.0), hits


def _select(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Per client (K,) the new or the old tensor (K, ...)."""
    return torch.where(active.view(-1, *[1] * (new.dim() - 1)), new, old)
