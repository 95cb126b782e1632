"""``Weights``: the tensors of K clients by name, and where the gradient of each goes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from raysim.functional.parameters import ParameterLayout


class Weights:
    """Views of the clients' parameters (K, P), and of their gradient.

    Args:
        frozen: parameters that are the same for all clients and get no gradient.
        goes_back: whether a gradient is going to be asked for.

    Attributes:
        gradients: (K, P), written to on the way back, which gives it.
        written: names of the parameters whose gradient was handed out to be written.
    """

    def __init__(self, theta: Tensor, layout: ParameterLayout, frozen: Mapping[str, Tensor], goes_back: bool) -> None:
        self._theta, self._places, self._frozen, self.goes_back = theta, layout.places, frozen, goes_back
        self.gradients: Tensor | None = None
        self.written: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        """A parameter, (K, *shape), or of a single (1, *shape) if it is frozen."""
        place = self._places.get(name)
        if place is None:
            return self._frozen[name][None]
        return _cut(self._theta, *place)

    def is_frozen(self, name: str) -> bool:
        return name not in self._places

    def gradient(self, name: str) -> Tensor | None:
        """Where the gradient (K, *shape) of a parameter goes; None if it is frozen."""
        place = self._places.get(name)
        if place is None:
            return None
        assert self.gradients is not None
        self.written.add(name)
        return _cut(self.gradients, *place)


def _cut(vectors: Tensor, start: int, size: int, shape: tuple[int, ...]) -> Tensor:
    return vectors[:, start : start + size].view(len(vectors), *shape)
