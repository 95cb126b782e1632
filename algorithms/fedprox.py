"""FedProx: Federated Optimization in Heterogeneous Networks.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith. MLSys 2020. https://arxiv.org/abs/1812.06127

    client i, for each batch:  w_i = w_i - lr (g(w_i) + mu (w_i - w))
    server:                    w   = sum_i n_i w_i / sum_i n_i

Down and up: the shared parameters. Kept by a client: nothing. As costly as FedAvg.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, Batch, Carry, ClientContext, FederatedAlgorithm, Tensor
from raysim.search_space import Tuned


class FedProx(FederatedAlgorithm):
    """FedAvg whose clients are drawn back to the server's parameters while they train."""

    paper = "https://arxiv.org/abs/1812.06127"
    about = About("optimization", sent="S", kept="nothing", evaluated="as it is", cost="1")

    mu: Annotated[float, Tuned([0.001, 0.01, 0.1, 0.5, 1.0], "what the authors' README recommends")] = Field(0.1, gt=0)
    """Strength of the pull; the authors tune it in {0.001, 0.01, 0.1, 0.5, 1}."""

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        gradient, loss = ctx.gradient(carry["theta"], batch)
        return gradient + self.mu * ctx.drift(carry["theta"]), loss
