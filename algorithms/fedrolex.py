"""FedRolex: Model-Heterogeneous Federated Learning with Rolling Sub-Model Extraction.

S. Alam, L. Liu, M. Yan, M. Zhang. NeurIPS 2022. https://arxiv.org/abs/2212.01548

HeteroFL, but that the axes begin ``step`` dimensions further in each round, and wrap around, so that a client trains
other entries of the model in turn:

    client i:  the dimensions r, r + 1, ... r + ceil(r_i n) - 1 (mod n) of every axis, r = step times the round

Dimensions of queries, keys and values roll inside each head; in the authors' code over all heads, so that a head of a
client is parts of two. Theirs roll by one dimension per round, over thousands of rounds: an axis of n dimensions takes n
rounds. For the rest see HeteroFL. A client's part is another in each round, so it is the whole model that is evaluated.

Down and up: the entries of the client's part in this round. Kept by a client: nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysim.algorithms.base import About
from raysim.algorithms.heterofl import HeteroFL
from raysim.search_space import Tuned


class FedRolex(HeteroFL):
    """Clients train a part of the model's width that moves on in each round."""

    paper = "https://arxiv.org/abs/2212.01548"
    about = About(
        "width",
        sent="the entries of its width, about its square of S",
        kept="nothing",
        evaluated="as it is",
        cost="1 here; a real client saves",
    )

    step: Annotated[int, Tuned([1, 2, 4, 8], "the authors' 1, and more for fewer rounds")] = Field(1, ge=1)
    """By how many dimensions the clients' part moves on per round; 1 in the paper."""
    evaluated: Literal["full"] = "full"
    """Clients are evaluated with the whole shared model."""

    def _offset(self, round: int) -> int:
        return self.step * round
