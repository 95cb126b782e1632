"""The batches of K clients in lockstep: their order, augmentation, and the padding between clients of unequal size.

Shapes: K clients, n samples of the largest of them, E epochs, B samples of a batch.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim import seeds
from raysim.config.schema import Config
from raysim.data.partition import Partition
from raysim.functional.batch import Batch
from raysim.functional.context import ClientData
from raysim.training.transforms import Augmentation, ModelInput, augmentation

Ints = NDArray[np.int64]


class Samples:
    """The whole data set as a worker holds it: on its device where it fits, else on the host, copied as it is needed.

    Args:
        images: (n, H, W, C) uint8, maybe in shared memory: read only.
        labels: (n,) int64.
        budget: bytes of the device's memory that it may take. On a CPU nothing is copied.
    """

    def __init__(self, images: NDArray[np.uint8], labels: Ints, device: torch.device, budget: int) -> None:
        self.device, self.side = device, min(images.shape[1:3])
        self._mapped = images if isinstance(images, np.memmap) else None
        fits = images.nbytes + labels.nbytes <= budget
        self._on = device if fits else torch.device("cpu")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # and is never written to
            self._images, self._labels = (torch.from_numpy(a).to(self._on) for a in (images, labels))

    def at(self, index: Ints) -> tuple[Tensor, Tensor]:
        """Images (..., H, W, C) and labels (...) at an index of any shape, on the device."""
        if self._mapped is not None:
            read_ahead(self._mapped, index)
        where = to_device(torch.from_numpy(index), self._on)
        return to_device(self._images[where], self.device), to_device(self._labels[where], self.device)


def read_ahead(images: np.memmap[Any, Any], index: Ints) -> None:
    """Let the system read mapped images all at once; otherwise each page would be waited for when it is touched."""
    mapped: mmap.mmap = images._mmap  # type: ignore[attr-defined]
    size = images[0].nbytes
    for i in np.unique(index).tolist():
        start = images.offset + i * size
        begin = start - start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, begin, start + size - begin)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor without waiting: to a GPU through pinned memory, in order with the computations there."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Pool(NamedTuple):
    """The samples of K clients on the device, padded to the largest: images (K, n, H, W, C) uint8, labels (K, n)."""

    images: Tensor
    labels: Tensor
    counts: Ints
    """(K,), on the host: how many of the n are a client's own."""

    @classmethod
    def gather(cls, samples: Samples, indices: list[Ints]) -> Pool:
        """The samples ``indices[k]`` of each client."""
        counts = np.array([len(index) for index in indices])
        padded = np.zeros((len(indices), counts.max()), np.int64)
        for row, index in zip(padded, indices, strict=True):
            row[: len(index)] = index
        return cls(*samples.at(padded), counts)


class Order(NamedTuple):
    """In which order K clients go through their samples, and how each is augmented; drawn per client from its stream.

    All on the device, so that no local step waits for the host.
    """

    positions: Tensor
    """(E, K, n) into the pool."""
    mask: Tensor
    """(K, n) float, 0 where a client has no more samples."""
    drawn: tuple[Tensor, ...]
    """(E, K, n, ...) each, for the augmentation; none without it."""


class ClientSamples:
    """The samples of any clients of a run, as batches on a worker's device.

    Args:
        images, labels: the whole data set, read only (it may lie in shared memory).
        num_classes: of the data set.
        has_batch_norm: whether the model has BatchNorm and so can't be trained on a batch of one sample.
    """

    def __init__(
        self,
        config: Config,
        images: NDArray[np.uint8],
        labels: Ints,
        partition: Partition,
        device: torch.device,
        num_classes: int,
        has_batch_norm: bool,
    ) -> None:
        self._config, self.partition, self._device = config, partition, device
        self._labels, self._num_classes, self._has_batch_norm = labels, num_classes, has_batch_norm
        self.model_input, self._augment = ModelInput.of(config), augmentation(config.data.augment)
        self.data = Samples(images, labels, device, _data_budget(config, device))

    def training(self, clients: Ints) -> Pool:
        """The training samples of clients (K,)."""
        return Pool.gather(self.data, self.training_indices(clients))

    def training_indices(self, clients: Ints) -> list[Ints]:
        """Which samples each of clients (K,) trains on."""
        return [self.partition.train(c) for c in clients.tolist()]

    def client_data(self, indices: list[Ints]) -> ClientData:
        """What clients with these training samples know of them, each entry (K, ...); they have no steps to do."""
        counts, classes = [len(index) for index in indices], self._num_classes
        owner = np.repeat(np.arange(len(indices)), counts)
        labels = self._labels[np.concatenate(indices)]
        per_class = np.bincount(owner * classes + labels, minlength=len(indices) * classes)
        drawn = (np.array(counts), per_class.reshape(-1, classes), np.zeros(len(indices)))
        return ClientData(*(to_device(torch.from_numpy(a.astype(np.float32)), self._device) for a in drawn))

    def held_out(self, clients: Ints) -> Pool:
        """The validation and test samples of clients (K,)."""
        return Pool.gather(self.data, [self.partition.held_out(c) for c in clients.tolist()])

    def order(self, purpose: str, round: int, clients: Ints, pool: Pool, epochs: int) -> Order:
        """A shuffled order of every epoch; ``purpose`` names the random stream."""
        return draw_order(
            self._config.seed, purpose, round, clients, pool.counts, epochs, self._augment, self.data.side, self._device
        )

    def batches(
        self, pool: Pool, order: Order, epoch: int, batches_per_step: int, chosen: Tensor | None = None
    ) -> Iterator[tuple[Batch, bool]]:
        """The batches (K, B, ...) of an epoch, and whether every client has samples in it.

        ``chosen`` (K, n) float: 0 for samples of the pool that the epoch leaves out, as if they were padding.
        """
        size, least = self._step(batches_per_step)
        return batches(pool, order, epoch, size, self.model_input, self._augment, least, chosen)

    def held_back(self, pool: Pool, share: float) -> Tensor:
        """(K, n) float: 1 for the last ``share`` of each client's samples in the pool, rounded down."""
        first = pool.counts - (share * pool.counts).astype(np.int64)
        position = np.arange(pool.images.shape[1])
        held = (position >= first[:, None]) & (position < pool.counts[:, None])
        return to_device(torch.from_numpy(held.astype(np.float32)), self._device)

    def steps_per_epoch(self, counts: Ints, batches_per_step: int) -> Ints:
        """(K,): in how many batches of an epoch clients with so many samples have a part."""
        size, least = self._step(batches_per_step)
        steps: Ints = -(-np.maximum(1, counts - least + 1) // size)
        return steps

    def _step(self, batches_per_step: int) -> tuple[int, int]:
        """The most and the fewest samples of a batch."""
        # BatchNorm has no statistics of one sample: a last batch of one is left out (another sample in every epoch).
        least = 2 * batches_per_step if self._has_batch_norm else 1
        return self._config.train.batch_size * batches_per_step, least

    def stored(self, pool: Pool, chunk: int) -> Iterator[Batch]:
        """All samples of K clients in the order in which they are stored, unaugmented, in batches (K, up to chunk)."""
        width = pool.images.shape[1]
        own = to_device(torch.from_numpy((np.arange(width) < pool.counts[:, None]).astype(np.float32)), self._device)
        for start in range(0, width, chunk):
            here = slice(start, start + chunk)
            yield Batch(self.model_input(pool.images[:, here]), pool.labels[:, here], own[:, here])


def _data_budget(config: Config, device: torch.device) -> int:
    """Bytes of a device's memory that the data set may take: a quarter of the actor's share of a GPU."""
    if device.type != "cuda":
        return 0
    share = config.resources.num_gpus_per_actor
    assert share != "auto"
    return int(0.25 * min(share, 1) * torch.cuda.get_device_properties(device).total_memory)


def draw_order(
    seed: int,
    purpose: str,
    round: int,
    clients: Ints,
    counts: Ints,
    epochs: int,
    augment: Augmentation | None,
    side: int,
    device: torch.device,
) -> Order:
    """Every client's shuffled order of every epoch, from its own streams ``(seed, purpose | augment, round, client)``."""
    shape = (epochs, len(clients), int(counts.max()))
    positions = np.zeros(shape, np.int64)
    like = augment.draw(0, side, np.random.default_rng(0)) if augment is not None else ()
    drawn = [np.zeros((*shape, *array.shape[1:]), array.dtype) for array in like]
    for k, (client, count) in enumerate(zip(clients.tolist(), counts.tolist(), strict=True)):
        rng = seeds.stream(seed, purpose, round, client)
        positions[:, k, :count] = rng.permuted(np.tile(np.arange(count), (epochs, 1)), axis=1)
        if augment is not None:
            rng = seeds.stream(seed, "augment", round, client)
            for epoch in range(epochs):
                for whole, part in zip(drawn, augment.draw(count, side, rng), strict=True):
                    whole[epoch, k, :count] = part
    mask = (np.arange(shape[2]) < counts[:, None]).astype(np.float32)
    first, second, *rest = (to_device(torch.from_numpy(array), device) for array in (positions, mask, *drawn))
    return Order(first, second, tuple(rest))


def batches(
    pool: Pool,
    order: Order,
    epoch: int,
    batch_size: int,
    model_input: ModelInput,
    augment: Augmentation | None = None,
    least: int = 1,
    chosen: Tensor | None = None,
) -> Iterator[tuple[Batch, bool]]:
    """The batches (K, B, ...) of one epoch, and whether every client has samples in it.

    The last batch of an epoch is as wide as its largest client needs; one client alone is never padded. A last batch of
    fewer than ``least`` samples is left out, and so are samples that are not ``chosen`` (K, n).
    """
    width = order.positions.shape[2]
    client = torch.arange(len(pool.counts), device=pool.images.device)[:, None]
    for start in range(0, max(1, width - least + 1), batch_size):
        here = slice(start, min(start + batch_size, width))
        positions = order.positions[epoch, :, here]
        images = pool.images[client, positions]
        if augment is not None:
            drawn = (whole[epoch, :, here].flatten(0, 1) for whole in order.drawn)
            images = augment.apply(images.flatten(0, 1), *drawn).view_as(images)
        mask = order.mask[:, here]
        if chosen is not None:
            mask = mask * chosen.gather(1, positions)
        batch = Batch(model_input(images), pool.labels[client, positions], mask)
        yield batch, chosen is None and bool((pool.counts > start).all())
