"""FedAdam, FedYogi, FedAdagrad: Adaptive Federated Optimization.

S. J. Reddi, Z. Charles, M. Zaheer, Z. Garrett, K. Rush, J. Konečný, S. Kumar, H. B. McMahan. ICLR 2021.
https://arxiv.org/abs/2003.00295

    client i:  w_i = w after local epochs of SGD on its own loss
    server:    D = sum_i n_i w_i / sum_i n_i - w,  m = beta1 m + (1 - beta1) D,
               w = w + server_lr m / (sqrt(v) + tau)
               FedAdam:     v = beta2 v + (1 - beta2) D^2
               FedYogi:     v = v - (1 - beta2) D^2 sign(v - D^2)
               FedAdagrad:  v = v + D^2

m starts at 0, v at ``initial_v``, without a correction of the bias, as in the paper. Down and up: the shared
parameters. Kept by a client: nothing. As costly as FedAvg.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, FederatedAlgorithm, ServerContext, Tensor, Tensors, torch
from raysim.search_space import Range, Tuned


class FedOpt(FederatedAlgorithm):
    """The mean update is a gradient for an adaptive optimiser on the server."""

    paper = "https://arxiv.org/abs/2003.00295"

    server_lr: Annotated[
        float, Tuned(Range(1e-3, 10.0, log=True), "it holds the authors' best values, 0.003 to 10")
    ] = Field(0.01, gt=0)
    """Learning rate of the server; the paper tunes it from 0.001 to 10 for each task."""
    beta1: Annotated[float, Tuned(None, "the authors do not tune it")] = Field(0.9, ge=0, lt=1)
    """Momentum of the mean update."""
    tau: Annotated[
        float, Tuned(Range(1e-5, 0.1, log=True), "from the least to the largest of the authors' best values")
    ] = Field(1e-3, gt=0)
    """Adaptivity: the larger, the more like plain momentum."""
    initial_v: Annotated[float, Tuned(None, "as in the authors' experiments")] = Field(0.0, ge=0)
    """What v starts at. 0 in Flower, FL-bench and the authors' experiments; their analysis wants tau^2 or more."""

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        """The next v (S,) from v and the squared mean update."""
        raise NotImplementedError

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"m": torch.zeros_like(shared), "v": torch.full_like(shared, self.initial_v)}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        update = mean["shared"] - shared
        m = self.beta1 * server_state["m"] + (1 - self.beta1) * update
        v = self.second_moment(server_state["v"].double(), update**2)
        return shared + self.server_lr * m / (v.sqrt() + self.tau), {"m": m.float(), "v": v.float()}


class FedAdam(FedOpt):
    """FedAvg with Adam on the server."""

    about = About("optimization", sent="S", kept="nothing", evaluated="as it is", cost="1")

    beta2: Annotated[float, Tuned(None, "the authors do not tune it")] = Field(0.99, ge=0, lt=1)
    """Decay of the squared mean update. (The authors' code keeps 0.999.)"""

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


class FedYogi(FedOpt):
    """FedAvg with Yogi on the server, whose second moment changes slowly."""

    about = About("optimization", sent="S", kept="nothing", evaluated="as it is", cost="1")

    beta2: Annotated[float, Tuned(None, "the authors do not tune it")] = Field(0.99, ge=0, lt=1)
    """Decay of the squared mean update. (The authors' code keeps 0.999.)"""

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * torch.sign(v - square)


class FedAdagrad(FedOpt):
    """FedAvg with Adagrad on the server, whose second moment only grows."""

    about = About("optimization", sent="S", kept="nothing", evaluated="as it is", cost="1")

    beta1: Annotated[float, Tuned(None, "the authors do not tune it")] = Field(0.0, ge=0, lt=1)
    """Momentum of the mean update; Adagrad has none."""

    def second_moment(self, v: Tensor, square: Tensor) -> Tensor:
        return v + square
