"""FedFomo: Personalized Federated Learning with First Order Model Optimization.

M. Zhang, K. Sapra, S. Fidler, S. Yeung, J. M. Alvarez. ICLR 2021. https://arxiv.org/abs/2012.08565

    client i, of models w_j that it is sent, and its own:  q_j = (L(o_i) - L(w_j)) / |w_j - o_i|  on its validation samples
        o_i = sum_j a_j w_j,  a_j = max(q_j, 0) / sum_j max(q_j, 0);  its own model w_i where no q_j is above 0
    then:      w_i = o_i after local epochs of SGD on its other samples
    server:    keeps the models of the last round, and the sum of all q_j of each client

o_i is the model from which the client started last, before it trained. The last ``validation`` of a client's samples only
validate, as in PFLlib. A client is sent up to M - 1 models of other clients of the round before: those with the largest
sum of q_j, or, with probability ``epsilon``, which falls by ``epsilon_decay`` per round, any. Distances are Euclidean, as
in the paper and PFLlib (the authors' default is the sum of absolute differences). With no model to be sent, a round is
local training.

Down: up to M - 1 models; up: its own. Kept by a client: w_i and o_i. It is evaluated with w_i. (E + M / 3) / E times the
cost of FedAvg at most, less what is held back.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    ClientRows,
    F,
    FederatedAlgorithm,
    ParameterLayout,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.search_space import Tuned


class FedFomo(FederatedAlgorithm):
    """Each client mixes those models of others that are better than its own on samples that it holds back."""

    paper = "https://arxiv.org/abs/2012.08565"
    about = About(
        "mixing",
        sent="up to M - 1 models down, its own up",
        kept="its whole model, and the one it started from",
        evaluated="its own model",
        cost="(E + M / 3) / E at most",
    )
    uploads = {
        "shared": Upload("uniform"),
        "own": Upload("each"),
        "gains": Upload("each"),
        "candidates": Upload("each"),
    }
    shares_nothing = True
    told_in_evaluation = False
    whole_model_kept = "its clients keep a whole model of their own"
    needs_body = True
    whole_phases = ("mix",)
    held_back_phases = ("mix",)

    M: Annotated[int, Tuned([5, 10], "the authors' values")] = Field(5, ge=1)
    """How many models a client mixes, its own included."""
    validation: Annotated[float, Tuned([0.1, 0.2, 0.4], "around the authors' 0.2 and 0.4")] = Field(0.2, gt=0, lt=1)
    """The share of a client's training samples that it holds back."""
    epsilon: Annotated[float, Tuned(None, "the authors' 0.3, or none")] = Field(0.3, ge=0, le=1)
    """How often a client is sent models by chance, at first; 0.3 in the authors' code."""
    epsilon_decay: Annotated[float, Tuned(None, "the authors' 0.05")] = Field(0.05, ge=0)
    """By how much that falls in each round."""

    def personal_patterns(self) -> list[str]:
        return ["*"]

    def held_back(self) -> float:
        return self.validation

    # The server.

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"models": torch.empty(0, len(ctx.initial)), "ids": torch.empty(0, dtype=torch.int64)}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, "models": server_state["models"]}

    def server_row(self, ctx: ServerContext) -> Tensors:
        return {"gains": torch.zeros(ctx.num_clients)}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        ids, count = server_state["ids"], len(server_state["ids"])
        if not count:
            return {}
        order = torch.randperm(count, generator=ctx.generator)
        explores = (
            torch.rand(ctx.num_clients + 1, generator=ctx.generator) < self.epsilon - ctx.round * self.epsilon_decay
        )
        explores = explores[clients.ids.clamp(max=ctx.num_clients)]  # by client, whatever batch it is in
        by_chance = ((order + clients.ids[:, None]) % count).float()
        scores = torch.where(explores[:, None], by_chance, clients.rows["gains"][:, ids])
        scores = torch.where(ids == clients.ids[:, None], -torch.inf, scores)
        ranked, at = scores.sort(dim=1, descending=True, stable=True)
        ranked, at = ranked[:, : self.M - 1], at[:, : self.M - 1]
        at = torch.where(ranked.isfinite(), at, -1)
        return {"at": at.float(), "candidates": torch.where(at >= 0, ids[at], -1).float()}

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        candidates, gains = clients.uploads["candidates"].long(), clients.rows["gains"]
        known = candidates >= 0
        added = torch.where(known, clients.uploads["gains"], 0.0)
        gains = gains.scatter_add(1, candidates.clamp(min=0), added)
        return mean["shared"], {"models": clients.uploads["own"], "ids": clients.ids}, {"gains": gains}

    # A client.

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"own": theta, "start": theta}

    def epochs(self, local_epochs: int) -> list[str]:
        return ["mix", *["train"] * local_epochs]

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        own, start = state["own"], state["start"]
        count = state["at"].shape[-1] if "at" in state else 0
        message: Carry = {name: state[name] for name in ("at", "candidates") if name in state}
        # Losses of the start, of the own model, and of each that was sent.
        sums = {"losses": own.new_zeros(2 + count), "count": own.new_zeros(())}
        models = {"theta": own, "own": own, "start": start, "from": own}
        return {**models, **sums, "optimizer": ctx.optimizer.init(own), **message}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        if ctx.phase != "mix":
            return super().client_step(carry, batch, ctx)
        if "at" not in carry:
            return carry, {}
        candidates = self._candidates(carry, ctx)
        losses = torch.stack(
            [
                batch.mask @ F.cross_entropy(ctx.logits(model, batch.images), batch.labels, reduction="none")
                for model in (carry["start"], *candidates)
            ]
        )
        carry = {**carry, "losses": carry["losses"] + losses, "count": carry["count"] + batch.mask.sum()}
        weights = self._gains(carry, candidates).clamp(min=0)
        total = weights.sum()
        mixed = torch.where(total > 0, weights / total.clamp(min=1e-30), 0.0) @ candidates
        theta = torch.where(total > 0, mixed, carry["own"])
        return {**carry, "theta": theta, "from": theta}, {}

    def _candidates(self, carry: Carry, ctx: ClientContext) -> Tensor:
        """The models (1 + C, P) that a client mixes: its own first."""
        sent = ctx.broadcast["models"][carry["at"].long().clamp(min=0)]
        return torch.cat([carry["own"][None], sent])

    def _gains(self, carry: Carry, candidates: Tensor) -> Tensor:
        """q (1 + C,); 0 for those that are none."""
        losses = carry["losses"] / carry["count"].clamp(min=1)
        distances = torch.linalg.vector_norm(candidates - carry["start"], dim=1) + 1e-5
        gains = (losses[0] - losses[1:]) / distances
        return gains * torch.cat([torch.ones_like(gains[:1]), (carry["at"] >= 0).float()])

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, _ = super().client_final(carry, ctx)
        nothing = carry["losses"][:0]
        gains = self._gains(carry, self._candidates(carry, ctx))[1:] if "at" in carry else nothing
        return {
            **uploads,
            "own": carry["theta"],
            "gains": gains,
            "candidates": carry.get("candidates", nothing),
        }, {"own": carry["theta"], "start": carry["from"]}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return state["own"]

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """The models that it mixes down, its own up; and who they are of, and what it thinks of them."""
        size = float(len(state["own"]))
        sent = (state["at"] >= 0).double().sum() if "at" in state else state["own"].new_zeros((), dtype=torch.float64)
        return torch.stack([sent * (size + 1), size + 2 * sent])
