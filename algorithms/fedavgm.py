"""FedAvgM: Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification.

T.-M. H. Hsu, H. Qi, M. Brown. 2019. https://arxiv.org/abs/1909.06335

    client i:  w_i = w after local epochs of SGD on its own loss
    server:    D = w - sum_i n_i w_i / sum_i n_i,  m = beta m + D,  w = w - server_lr m
               with nesterov:                                       w = w - server_lr (D + beta m)

Down and up: the shared parameters. Kept by a client: nothing. As costly as FedAvg.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, FederatedAlgorithm, ServerContext, Tensor, Tensors, torch
from raysim.search_space import Range, Tuned


class FedAvgM(FederatedAlgorithm):
    """FedAvg with momentum on the server."""

    paper = "https://arxiv.org/abs/1909.06335"
    about = About("optimization", sent="S", kept="nothing", evaluated="as it is", cost="1")

    beta: Annotated[float, Tuned([0.7, 0.9, 0.97, 0.99, 0.997], "the paper's values but 0")] = Field(0.9, gt=0, lt=1)
    """Momentum; the paper tries 0.7 to 0.997."""
    server_lr: Annotated[float, Tuned(Range(0.1, 10.0, log=True), "a factor of 10 around the paper's 1")] = Field(
        1.0, gt=0
    )
    """Learning rate of the server."""
    nesterov: bool = False
    """Nesterov's momentum, as in FL-bench; the paper's formula is plain momentum."""

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"momentum": torch.zeros_like(shared)}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        update = shared - mean["shared"]
        momentum = self.beta * server_state["momentum"] + update
        step = update + self.beta * momentum if self.nesterov else momentum
        return shared - self.server_lr * step, {"momentum": momentum.float()}
