"""``StateLayout``: the vectors that a client keeps between rounds, in one float32 row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StateLayout:
    """The named vectors of a client's state (``FederatedAlgorithm.client_state``) in one float32 row."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> StateLayout:
        """The layout of a state whose entries are vectors (n,)."""
        for name, vector in state.items():
            assert vector.dim() == 1, (
                f"client state {name!r} has shape {tuple(vector.shape)}; each entry must be a vector"
            )
        return cls(tuple(state), tuple(v.numel() for v in state.values()))

    @property
    def size(self) -> int:
        """How many float32 numbers a client's state has."""
        return sum(self.sizes)

    def pack(self, state: dict[str, Tensor]) -> Tensor:
        """Named (..., n) to one (..., size)."""
        assert state.keys() == set(self.names), f"client state has {set(state)}, client_state() declares {self.names}"
        return torch.cat([state[name].float() for name in self.names], dim=-1)

    def unpack(self, rows: Tensor) -> dict[str, Tensor]:
        """One (..., size) to named (..., n), as views."""
        return dict(zip(self.names, rows.split(self.sizes, dim=-1), strict=True))
