"""FedNova: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization.

J. Wang, Q. Liu, H. Liang, G. Joshi, H. V. Poor. NeurIPS 2020. https://arxiv.org/abs/2007.07481

    client i:  w_i = w after K_i local steps,  d_i = (w - w_i) / a_i
    server:    w = w - (sum_i p_i a_i) sum_i p_i d_i,   p_i = n_i / sum_j n_j

a_i is K_i for plain SGD; with momentum, the weight with which all of its gradients enter w_i together. Where all clients do
equally many steps this is FedAvg: unequal numbers of samples or stragglers make the difference.

Down and up: the shared parameters, and two numbers up. Kept by a client: nothing. As costly as FedAvg.
"""

from __future__ import annotations

from raysim.algorithms.base import (
    About,
    Carry,
    ClientContext,
    FederatedAlgorithm,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
)


class FedNova(FederatedAlgorithm):
    """Updates are normalised by how many local steps a client did."""

    paper = "https://arxiv.org/abs/2007.07481"
    about = About("optimization", sent="S; 2 numbers more up", kept="nothing", evaluated="as it is", cost="1")
    uploads = {
        "shared": Upload(times="per_step"),
        "per_step": Upload(scale_bits=52),
        "steps": Upload(),
    }
    local_optimizers = ("sgd",)

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        # sum_i p_i d_i = sum_i p_i / a_i (w - mean of w_i weighted by p_i / a_i), and that is the mean that arrives.
        return shared - mean["steps"] * mean["per_step"] * (shared - mean["shared"]), server_state

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        steps = ctx.optimizer.total_weight(ctx.client.num_steps)[None]
        return {**uploads, "per_step": 1 / steps, "steps": steps}, state
