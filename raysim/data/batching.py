"""The batches of K clients in lockstep: whose samples come when, and the padding between clients of unequal size.

Shapes: K clients, n samples of the largest of them, E epochs, B samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim import seeds
from raysim.data.transforms import augment, draw_augmentation, to_model_input
from raysim.network import Batch

Ints = NDArray[np.int64]


class Pool(NamedTuple):
    """The samples of K clients on the device, padded to the largest: images (K, n, H, W, C) uint8, labels (K, n)."""

    images: Tensor
    labels: Tensor
    counts: Ints
    """(K,), on the host: how many of the n are a client's own."""

    @classmethod
    def gather(cls, images: NDArray[np.uint8], labels: Ints, indices: list[Ints], device: torch.device) -> Pool:
        """Copy the samples ``indices[k]`` of each client out of the data set, which may be shared and read-only."""
        counts = np.array([len(index) for index in indices])
        padded = np.zeros((len(indices), counts.max()), np.int64)
        for row, index in zip(padded, indices, strict=True):
            row[: len(index)] = index
        return cls(torch.from_numpy(images[padded]).to(device), torch.from_numpy(labels[padded]).to(device), counts)


class Order(NamedTuple):
    """In which order K clients go through their samples, and how each is augmented; drawn per client from its stream."""

    positions: Ints
    """(E, K, n) into the pool."""
    flips: NDArray[np.bool_] | None
    """(E, K, n), None without augmentation."""
    shifts: Ints | None
    """(E, K, n, 2) pixels."""


def draw_order(
    seed: int, purpose: str, round: int, clients: Ints, counts: Ints, epochs: int, augmentation: str, side: int
) -> Order:
    """Every client's shuffled order of every epoch, from its own streams ``(seed, purpose | augment, round, client)``."""
    shape = (epochs, len(clients), int(counts.max()))
    positions = np.zeros(shape, np.int64)
    flips, shifts = np.zeros(shape, bool), np.zeros((*shape, 2), np.int64)
    for k, (client, count) in enumerate(zip(clients.tolist(), counts.tolist(), strict=True)):
        rng = seeds.stream(seed, purpose, round, client)
        positions[:, k, :count] = rng.permuted(np.tile(np.arange(count), (epochs, 1)), axis=1)
        if augmentation != "none":
            rng = seeds.stream(seed, "augment", round, client)
            for epoch in range(epochs):
                flips[epoch, k, :count], shifts[epoch, k, :count] = draw_augmentation(augmentation, count, side, rng)
    return Order(positions, None, None) if augmentation == "none" else Order(positions, flips, shifts)


def batches(
    pool: Pool, order: Order, epoch: int, batch_size: int, image_size: int, least: int = 1
) -> Iterator[tuple[Batch, bool]]:
    """The batches (K, B, ...) of one epoch, and whether every client has samples in it.

    The last batch of an epoch is as wide as its largest client needs; one client alone is never padded. A last batch of
    fewer than ``least`` samples is left out.
    """
    device = pool.images.device
    width = order.positions.shape[2]
    positions = torch.from_numpy(order.positions[epoch]).to(device)
    mask = torch.from_numpy(np.arange(width) < pool.counts[:, None]).to(device).float()
    client = torch.arange(len(pool.counts), device=device)[:, None]
    for start in range(0, max(1, width - least + 1), batch_size):
        here = slice(start, min(start + batch_size, width))
        images = pool.images[client, positions[:, here]]
        if order.flips is not None:
            assert order.shifts is not None
            flips = torch.from_numpy(order.flips[epoch][:, here]).to(device)
            shifts = torch.from_numpy(order.shifts[epoch][:, here]).to(device)
            images = augment(images.flatten(0, 1), flips.flatten(), shifts.flatten(0, 1)).view_as(images)
        batch = Batch(to_model_input(images, image_size), pool.labels[client, positions[:, here]], mask[:, here])
        yield batch, bool((pool.counts > start).all())
