"""HetLoRA: Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models.

Y. J. Cho, L. Liu, Z. Xu, A. Fahrezi, G. Joshi. EMNLP 2024. https://arxiv.org/abs/2401.06432

    client i:  (A_i, B_i) = (A, B) cut to its rank r_i, after local epochs of SGD on
                   its own loss + lamda |B_i tail| |A_i tail|,  the tail being ranks from gamma r_i on
               if |B_i tail| |A_i tail| is smaller than it was when the round began: r_i = gamma r_i, rounded down
    server:    A, B = the means of A_i, B_i, 0 beyond r_i, weighted by |B_i A_i|; ranks that nobody has stay

Norms are Frobenius norms over all layers. There is no code of the authors; the keys say where their values are from. The
head and what else is shared is averaged with the same weights. A client is evaluated with what it can hold, its rank.

Down and up: the first r_i rows of A and columns of B, the head, and one number up. Kept by a client: r_i.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    ParameterLayout,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.algorithms.lora import RankedLoRA, factors, rank_index
from raysim.search_space import Range, Tuned

LEAST = 1e-8  # so that clients count equally as long as B is 0


class HetLoRA(RankedLoRA):
    """Clients have LoRA of different ranks, which they prune; the server weighs them by the norm of their update."""

    paper = "https://arxiv.org/abs/2401.06432"
    about = About(
        "lora",
        sent="LoRA of its rank, head; 1 number more up",
        kept="its rank",
        evaluated="at its rank",
        cost="1, without the gradients of the backbone",
    )
    uploads = {
        "shared": Upload("uniform", times="norm", scale_bits=44),
        "norm": Upload("uniform", scale_bits=44),
        "held": Upload("uniform", known=True),
    }
    needs_body = True

    lamda: Annotated[float, Tuned(Range(1e-4, 1e-2, log=True), "a factor of 10 around FlexLoRA's 0.001 for it")] = (
        Field(1e-3, ge=0)
    )
    """The paper's lambda, the weight of the product of the tails' norms; 0.001 in FlexLoRA's code for this method."""
    gamma: Annotated[float, Tuned([0.75, 0.9, 0.99], "small ranks need a smaller one than the paper's")] = Field(
        0.9, gt=0, lt=1
    )
    """Where the tail begins, as a share of the rank; it has at least one rank. A rank of 1 is never pruned."""

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        """Ranks that no client of the round has stay as they are: at 0 they would never train again."""
        index = rank_index(ctx.layout, shared.device)[: ctx.layout.num_shared]
        held = (index < 0) | (mean["held"] > 0)[index.clamp(min=0)]
        return torch.where(held, mean["shared"].float(), shared), server_state

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {**super().client_state(theta, layout), "pruned": theta.new_zeros(1)}

    def _rank(self, state: Tensors) -> Tensor:
        """(1,): what is left of the rank that the server knows the client to have had at first."""
        return state["rank"] - state["pruned"]

    def _tail(self, theta: Tensor, rank: Tensor, ctx: ClientContext) -> Tensor:
        """The product of the norms of both tails, a scalar; the root is smooth at 0."""
        index = rank_index(ctx.layout, theta.device)[: ctx.layout.num_shared]
        tail = torch.where((index >= self._shorter(rank)) & (index < rank), ctx.layout.split(theta)[0], 0.0)
        squares = [
            torch.stack([part.square().sum() for part in parts]).sum()
            for parts in zip(*factors(tail, ctx.layout), strict=True)
        ]
        return ((squares[0] + 1e-12) * (squares[1] + 1e-12)).sqrt()

    def _shorter(self, rank: Tensor) -> Tensor:
        return torch.minimum((self.gamma * rank).floor(), rank - 1).clamp(min=1)

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        carry, rank = super().client_init(state, ctx), self._rank(state)
        theta = self.of_rank(carry["theta"], rank, ctx)
        return {**carry, "theta": theta, "rank": rank, "pruned": state["pruned"], "tail": self._tail(theta, rank, ctx)}

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        gradient, loss = ctx.gradient(carry["theta"], batch)
        slope = torch.func.grad(lambda theta: self._tail(theta, carry["rank"], ctx))(carry["theta"])
        return gradient + self.lamda * slope, loss

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        rank = carry["rank"]
        prune = self._tail(carry["theta"], rank, ctx) < carry["tail"]
        left = torch.where(prune, self._shorter(rank), rank)
        uploads, state = super().client_final({**carry, "theta": self.of_rank(carry["theta"], left, ctx)}, ctx)
        products = [(up @ down).square().sum() for down, up in factors(uploads["shared"], ctx.layout)]
        norm = (torch.stack(products).sum().sqrt() + LEAST)[None]
        assert self.mid_dim is not None
        held = (torch.arange(self.mid_dim, device=left.device) < left).float()
        return {**uploads, "norm": norm, "held": held}, {**state, "pruned": carry["pruned"] + rank - left}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return self.of_rank(super().personalize(shared, state, ctx), self._rank(state), ctx)

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """What its rank has of the factors and all else that is shared, both ways; and its norm up."""
        index = rank_index(ctx.layout, uploads["shared"].device)[: ctx.layout.num_shared]
        down = (index < self._rank(state)).double().sum()
        return torch.stack([down, (index < uploads["held"].sum()).double().sum() + 1])
