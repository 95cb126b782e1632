"""What methods on LoRA have in common: the plugin ``lora`` on a frozen backbone, and ranks of clients.

Source of the plugin: E. J. Hu et al. ICLR 2022. https://arxiv.org/abs/2106.09685. Of every self-attention layer, ``down`` A
(r, D) starts random and ``up`` B (3 D, r) at zero; ``mid_dim`` is r, ``scale`` the factor on B A x.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

from pydantic import model_validator

from raysim.algorithms.base import (
    ClientContext,
    ClientRows,
    FederatedAlgorithm,
    ParameterLayout,
    ServerContext,
    Tensor,
    Tensors,
    torch,
)
from raysim.errors import ConfigError
from raysim.search_space import Tuned


class FederatedLoRA(FederatedAlgorithm):
    """LoRA on queries, keys and values, and the head, of a backbone that does not train."""

    plugin: Literal["lora"] = "lora"
    """The plugin in the model."""
    freeze_backbone: bool = True
    """Train LoRA and the head only; the rest keeps its initial (pretrained) values and is never sent."""


class RankedLoRA(FederatedLoRA):
    """Clients have LoRA of different ranks: a client of rank r has the first r rows of A and columns of B, the rest is 0.

    What is 0 in both stays 0 in training, since each is the factor of the other's gradient.
    """

    ranks: Annotated[list[int], Tuned(None, "the clients' devices")] = [2, 4, 8]
    """Ranks of the clients: of client i the (i mod their number)-th. The largest is ``mid_dim``, that of the server."""

    @model_validator(mode="before")
    @classmethod
    def _rank_of_the_server(cls, raw: object) -> object:
        if not isinstance(raw, dict) or raw.get("mid_dim") is not None:
            return raw
        ranks = raw.get("ranks", cls.model_fields["ranks"].default)
        fine = isinstance(ranks, list) and ranks and all(isinstance(rank, int) for rank in ranks)
        return {**raw, "mid_dim": max(ranks)} if fine else raw

    @model_validator(mode="after")
    def _ranks_fit(self) -> RankedLoRA:
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"'ranks' must be whole numbers of at least 1, not {self.ranks}")
        if max(self.ranks) != self.mid_dim:
            raise ValueError(
                f"'mid_dim' is the largest of 'ranks', {max(self.ranks)}, not {self.mid_dim}; leave it out"
            )
        return self

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        factor_places(ctx.layout)  # says if they are not shared
        return {}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        return {"rank": torch.tensor(self.ranks)[clients.ids % len(self.ranks)][:, None].float()}

    def of_rank(self, theta: Tensor, rank: Tensor, ctx: ClientContext) -> Tensor:
        """Parameters (P,) with 0 for all of LoRA beyond a rank (1,)."""
        return torch.where(rank_index(ctx.layout, theta.device) < rank, theta, 0.0)


@lru_cache(maxsize=16)
def rank_index(layout: ParameterLayout, device: torch.device) -> Tensor:
    """(P,): to which of the r rows of A, or columns of B, a parameter belongs; -1 for what is not LoRA."""
    parts = []
    for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True):
        index = torch.full((size,), -1)
        if name.endswith("lora.down.weight"):
            index = torch.arange(shape[0]).repeat_interleave(shape[1])
        elif name.endswith("lora.up.weight"):
            index = torch.arange(shape[1]).repeat(shape[0])
        parts.append(index)
    return torch.cat(parts).to(device)


@lru_cache(maxsize=16)
def factor_places(layout: ParameterLayout) -> tuple[tuple[slice, slice, int], ...]:
    """Of every layer with LoRA, where A (r, D) and B (3 D, r) are in the shared parameters, and r.

    Raises:
        ConfigError: one of them is not shared.
    """
    found = []
    for name in layout.names:
        if name.endswith("lora.down.weight"):
            places: list[slice] = []
            for part in (name, name.removesuffix("down.weight") + "up.weight"):
                start, size, _ = layout.places.get(part, (layout.num_shared, 0, ()))
                if start + size > layout.num_shared or not size:
                    raise ConfigError(f"algorithm.personal: this method needs {part} shared and trained")
                places.append(slice(start, start + size))
            found.append((places[0], places[1], layout.places[name][2][0]))
    return tuple(found)


def factors(shared: Tensor, layout: ParameterLayout) -> list[tuple[Tensor, Tensor]]:
    """A (..., r, D) and B (..., 3 D, r) of every layer, of shared parameters (..., S)."""
    return [
        (shared[..., a].unflatten(-1, (rank, -1)), shared[..., b].unflatten(-1, (-1, rank)))
        for a, b, rank in factor_places(layout)
    ]
