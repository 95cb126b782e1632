"""FlexLoRA: Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources.

J. Bai, D. Chen, B. Qian, L. Yao, Y. Li. NeurIPS 2024. https://arxiv.org/abs/2402.11505

    client i:  (A_i, B_i), of its rank r_i, after local epochs of SGD on its own loss, the backbone frozen
    server:    W = sum_i n_i B_i A_i / sum_i n_i = U S V^T, for each layer;  A = V^T, B = U S, cut to r_i for client i

All singular values go into B, as in the authors' code. There LoRA's scale is alpha / r_i; here it is the same for all
ranks. Head and what else is shared are averaged as in FedAvg. A client is evaluated with what it can hold, its rank; the
shared model has the largest. The server's singular value decompositions are in float64, and part of the result.

Down and up: the first r_i rows of A and columns of B, and the head. Kept by a client: nothing.
"""

from __future__ import annotations

from raysim.algorithms.base import (
    About,
    Carry,
    ClientContext,
    ClientRows,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.algorithms.lora import RankedLoRA, factor_places, factors, rank_index


class FlexLoRA(RankedLoRA):
    """Clients have LoRA of different ranks; the server averages the products and decomposes the mean."""

    paper = "https://arxiv.org/abs/2402.11505"
    about = About(
        "lora",
        sent="LoRA of its rank, head",
        kept="nothing",
        evaluated="at its rank",
        cost="1, without the gradients of the backbone",
    )
    uploads = {"shared": Upload(), "factors": Upload("each")}

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        shares = ctx.num_samples[clients.ids]
        shares = shares / shares.sum()
        new = mean["shared"].clone()
        sent, at = clients.uploads["factors"].double(), 0
        for a, b, rank in factor_places(ctx.layout):
            sizes = a.stop - a.start, b.stop - b.start
            down = sent[:, at : at + sizes[0]].unflatten(1, (rank, -1))
            up = sent[:, at + sizes[0] : at + sum(sizes)].unflatten(1, (-1, rank))
            at += sum(sizes)
            product = torch.einsum("k,kor,kri->oi", shares, up, down)
            u, s, vt = torch.linalg.svd(product, full_matrices=False)
            kept = min(rank, len(s))
            new_down, new_up = torch.zeros_like(down[0]), torch.zeros_like(up[0])
            new_down[:kept], new_up[:, :kept] = vt[:kept], u[:, :kept] * s[:kept]
            new[a], new[b] = new_down.flatten(), new_up.flatten()
        return new, server_state, clients.rows

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        carry = super().client_init(state, ctx)
        return {**carry, "theta": self.of_rank(carry["theta"], state["rank"], ctx)}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        parts = [part.flatten() for pair in factors(uploads["shared"], ctx.layout) for part in pair]
        return {**uploads, "factors": torch.cat(parts)}, state

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return self.of_rank(super().personalize(shared, state, ctx), state["rank"], ctx)

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """What its rank has of the factors, and all else that is shared, both ways; its rank is known."""
        index = rank_index(ctx.layout, uploads["shared"].device)[: ctx.layout.num_shared]
        return (index < state["rank"]).double().sum().expand(2)
