"""APPLE: Adapt to Adaptation: Learning Personalization for Cross-Silo Federated Learning.

J. Luo, S. Wu. IJCAI 2022. https://arxiv.org/abs/2110.08394

    client i, with w_i = sum_j p_ij c_j and its gradient g, for each batch:
        c_i  = c_i - lr p_ii g
        p_ij = p_ij - p_lr (<g, c_j> + l mu (p_ij - n_j / n)),   for all j, with the new c_i
    server:    keeps the core c_i of every client

l falls from 1 to 0 in the first ``pull_rounds`` of the rounds, as a cosine, and lags by a round, as in PFLlib (in the
authors' code it does not, and falls exponentially by default). All cores begin as the initial model (there each is
drawn). The cores of other clients do not move while a client trains. Only those of the round change; a client that never
trained has the initial model as its core. The authors' code takes the pull without the 1/2 of the paper's penalty (mu is
twice as strong there) and momentum 0.9 for both; PFLlib uploads the mixture in place of the core, and multiplies the rate
of the core by the number of clients: ``core_rate``.

Down: the cores of all clients, N models, which bounds how many clients there can be. Up: c_i and p_i (N numbers, which
the server only keeps for the client). Evaluated: the mixture. As costly to compute as FedAvg, and N inner products per
batch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    ClientRows,
    FederatedAlgorithm,
    ParameterLayout,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.errors import ConfigError
from raysim.search_space import Range, Tuned

MOST_BYTES = 8 * 2**30  # of all models, which every actor holds


class APPLE(FederatedAlgorithm):
    """Each client learns how to mix the core models of all clients."""

    paper = "https://arxiv.org/abs/2110.08394"
    about = About(
        "mixing",
        sent="the models of all clients down, its own up",
        kept="nothing (model and mixture are kept by the server)",
        evaluated="the mixture",
        cost="1, and an inner product with every model",
    )
    uploads = {"shared": Upload("uniform"), "core": Upload("each"), "mixture": Upload("each")}
    shares_nothing = True
    whole_model_kept = "each client has a mixture of all clients' models"
    trains_own_model = True
    depends_on_rounds = True

    p_lr: Annotated[float, Tuned(Range(1e-4, 0.1, log=True), "a factor of 10 and more around the authors' 0.001")] = (
        Field(1e-3, gt=0)
    )
    """Learning rate of the mixture, plain SGD; 0.001 in the authors' code, with momentum."""
    mu: Annotated[float, Tuned(Range(0.01, 1.0, log=True), "a factor of 10 around the authors' 0.1")] = Field(0.1, ge=0)
    """Strength of the pull of the mixture to the clients' shares of all samples."""
    pull_rounds: Annotated[float, Tuned([0.1, 0.2, 0.5, 1.0], "the authors' 0.1 and more")] = Field(0.1, gt=0, le=1)
    """The share of the rounds after which the pull is 0."""
    start: Literal["samples", "uniform"] = "samples"
    """The first mixture: the clients' shares of all samples, as in the authors' code, or 1 / N each, as in PFLlib."""
    core_rate: Literal["lr", "clients"] = "lr"
    """Learning rate of the core: ``train.optimizer.lr``, or as many times that as there are clients, as in PFLlib."""

    def personal_patterns(self) -> list[str]:
        return ["*"]

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        if ctx.layout.statistics:
            raise ConfigError(
                "algorithm.name: apple's mixtures are no averages, which variances of BatchNorm layers must be"
            )
        size = 4 * ctx.num_clients * len(ctx.initial)
        if size > MOST_BYTES:
            raise ConfigError(
                f"algorithm.name: apple sends the models of all clients to each: {ctx.num_clients:,} are {size / 2**30:,.0f} "
                f"GiB, of which {MOST_BYTES // 2**30} are allowed. It is a method for few clients"
            )
        return {"cores": ctx.initial.repeat(ctx.num_clients, 1), "shares": _shares(ctx)}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, **server_state}

    def server_row(self, ctx: ServerContext) -> Tensors:
        shares = _shares(ctx)
        return {"mixture": shares if self.start == "samples" else torch.full_like(shares, 1 / len(shares))}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        return {"mixture": clients.rows["mixture"], "id": clients.ids[:, None].float()}

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        cores = server_state["cores"].clone()
        cores[clients.ids] = clients.uploads["core"]
        return mean["shared"], {**server_state, "cores": cores}, {"mixture": clients.uploads["mixture"]}

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"trained": theta}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        cores, mixture = ctx.broadcast["cores"], state["mixture"]
        own = torch.arange(len(cores), device=cores.device) == state["id"].long()
        core = own.float() @ cores
        return {
            "core": core,
            "mixture": mixture,
            "own": own,
            "others": torch.where(own, 0.0, mixture) @ cores,
            "optimizer": ctx.optimizer.init(core),
        }

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        cores, mixture, own = ctx.broadcast["cores"], carry["mixture"], carry["own"]
        own_weight = torch.where(own, mixture, 0.0).sum()
        gradient, loss = ctx.gradient(carry["others"] + own_weight * carry["core"], batch)
        factor = len(cores) if self.core_rate == "clients" else 1
        step = factor * own_weight * gradient
        core, optimizer = ctx.optimizer.of_own_model().step(carry["core"], step, carry["optimizer"])
        slope = torch.where(own, ctx.dot(gradient, core), cores @ ctx.trained(gradient))
        pull = self._pull(ctx.round, ctx.num_rounds) * self.mu * (mixture - ctx.broadcast["shares"])
        mixture = mixture - self.p_lr * (slope + pull)
        others = torch.where(own, 0.0, mixture) @ cores
        new = {"core": core, "mixture": mixture, "own": own, "others": others, "optimizer": optimizer}
        return new, {"loss": loss, "own_weight": own_weight}

    def _pull(self, round: int, num_rounds: int) -> float:
        """The share of ``mu`` in a round."""
        last, before = self.pull_rounds * num_rounds, max(0, round - 1)
        return (math.cos(math.pi * before / last) + 1) / 2 if before < last else 0.0

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        own_weight = torch.where(carry["own"], carry["mixture"], 0.0).sum()
        trained = carry["others"] + own_weight * carry["core"]
        uploads = {"shared": ctx.broadcast["shared"], "core": carry["core"], "mixture": carry["mixture"]}
        return uploads, {"trained": trained}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return state["trained"] if ctx.as_trained else state["mixture"] @ ctx.broadcast["cores"]

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """The mixture is the client's own, and is not sent."""
        cores = ctx.broadcast["cores"]
        return torch.tensor([cores.numel() + len(cores), cores.shape[1]], dtype=torch.float64, device=cores.device)


def _shares(ctx: ServerContext) -> Tensor:
    """(N,): the clients' shares of all samples."""
    return (ctx.num_samples / ctx.num_samples.sum()).float()
