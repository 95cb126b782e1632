"""Every random stream of a simulation, each a pure function of ``(seed, purpose, round, client)``.

No stream depends on what ran before it or on which worker asks, so a client draws the same numbers wherever and however
often it runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# The position is part of the seed: append, never reorder.
PURPOSES = (
    *("model", "partition", "split", "cohort", "batches", "augment", "dropout", "adapt", "evaluate", "pooled"),
    *("reports", "stragglers", "new_clients", "prepare", "validation", "tuning", "server"),
)


def _sequence(seed: int, purpose: str, round: int, client: int) -> np.random.SeedSequence:
    return np.random.SeedSequence((seed, PURPOSES.index(purpose), round, client))


def stream(seed: int, purpose: str, round: int = 0, client: int = 0) -> np.random.Generator:
    """The numpy generator of one purpose, round and client."""
    return np.random.Generator(np.random.PCG64(_sequence(seed, purpose, round, client)))


def torch_seed(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A seed for ``torch.manual_seed``, for what torch draws itself (initial parameters, dropout)."""
    return int(_sequence(seed, purpose, round, client).generate_state(1, np.uint32)[0])


def seed_torch(device: torch.device, seed: int, purpose: str, round: int, client: int) -> None:
    """Seed torch's own generators, for what it draws on a device (dropout)."""
    import torch  # not at the top: code that draws only with numpy does not need it

    number = torch_seed(seed, purpose, round, client)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    # Not ``torch.manual_seed``: it asks every kind of device, which takes a millisecond.
    torch.default_generator.manual_seed(number)
