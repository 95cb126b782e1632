"""IFCA: An Efficient Framework for Clustered Federated Learning.

A. Ghosh, J. Chung, D. Yin, K. Ramchandran. NeurIPS 2020. https://arxiv.org/abs/2006.04088

    client i:  s_i = the model with the least loss on its training samples, of w_1 ... w_k
               w_i = w_s after local epochs of SGD on its own loss
    server:    w_s = mean of w_i over the clients of the round with s_i = s, with equal weights; w_s where there are none

Down: k models; up: one, and which it is. Kept by a client: nothing. A client is evaluated with the model that has the
least loss on its training samples (in the authors' code for MNIST on its test samples, whose labels decide then). k more
forward passes over its samples, in training and in evaluation: (E + k / 3) / E times the cost of FedAvg.

The k models must differ, or all clients choose the first one for ever. The authors draw them at random; here the entries
of each initial tensor are permuted, which for a drawn one is the same. With pretrained parameters that would destroy
them: with ``warmup_rounds`` all start as the model's own, and client i belongs to cluster i mod k in so many rounds.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    ClientRows,
    F,
    FederatedAlgorithm,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.search_space import Tuned


class IFCA(FederatedAlgorithm):
    """Several shared models: each client trains, and is evaluated with, the one that fits its data best."""

    paper = "https://arxiv.org/abs/2006.04088"
    about = About(
        "clusters",
        sent="k models down, one up",
        kept="nothing",
        evaluated="with the cluster that fits its training samples",
        cost="(E + k / 3) / E",
    )
    uploads = {"shared": Upload("uniform", groups="cluster"), "cluster": Upload("uniform")}
    whole_phases = ("choose",)
    needs_body = True
    one_shared_model = False

    clusters: Annotated[int, Tuned([2, 3, 4], "the values of the paper's experiments")] = Field(2, ge=1)
    """k, the number of models."""
    warmup_rounds: Annotated[int, Tuned(None, "1 for pretrained models, else 0")] = Field(0, ge=0)
    """Rounds in which clients belong to clusters by their id, from one initial model."""

    def needs_drawn_parameters(self) -> str:
        if self.warmup_rounds or self.clusters == 1:
            return ""
        return "its models begin as permutations of the initial parameters: set algorithm.warmup_rounds=1"

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        others = [shared.clone() for _ in range(self.clusters - 1)]
        if not self.warmup_rounds:
            sizes = ctx.layout.sizes[: ctx.layout.num_shared_tensors]
            drawn = ctx.layout.split(~ctx.layout.mask(ctx.layout.statistics))[0] if ctx.layout.statistics else None
            for i, model in enumerate(others):
                pieces = [piece[torch.randperm(len(piece), generator=ctx.generator)] for piece in model.split(sizes)]
                permuted = torch.cat(pieces)
                others[i] = permuted if drawn is None else torch.where(drawn, permuted, model)
        return {"others": torch.stack(others) if others else shared.new_empty(0, len(shared))}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, "others": server_state["others"]}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        return {"warmup": (clients.ids[:, None] % self.clusters).float()} if self.warmup_rounds else {}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        models = torch.cat([shared[None], server_state["others"]])
        new = torch.where(mean["shared"].isnan(), models, mean["shared"].float())
        return new[0], {"others": new[1:]}

    def epochs(self, local_epochs: int) -> list[str]:
        return ["choose", *["train"] * local_epochs]

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        warmup = {"warmup": state["warmup"]} if "warmup" in state else {}
        losses = ctx.broadcast["shared"].new_zeros(self.clusters)
        return {**super().client_init(state, ctx), "losses": losses, **warmup}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        if ctx.phase != "choose":
            return super().client_step(carry, batch, ctx)
        personal = ctx.layout.split(carry["theta"])[1]
        losses = carry["losses"] + batch.mask @ self._losses(personal, batch, ctx)
        chosen = self._chosen(losses, carry, ctx)
        theta = ctx.layout.join(chosen @ _models(ctx), personal)
        return {**carry, "theta": theta, "losses": losses}, {}

    def _losses(self, personal: Tensor, batch: Batch, ctx: ClientContext) -> Tensor:
        """The loss (B, k) of each sample with each model."""
        columns = []
        for model in _models(ctx):
            logits = ctx.logits(ctx.layout.join(model, personal), batch.images)
            columns.append(F.cross_entropy(logits, batch.labels, reduction="none"))
        return torch.stack(columns, dim=1)

    def _chosen(self, losses: Tensor, state: Any, ctx: ClientContext) -> Tensor:
        """1 for the model with the least of losses (k,), 0 for the others."""
        least = losses.argmin()
        if ctx.round < self.warmup_rounds:
            least = state["warmup"].squeeze().long()
        return (torch.arange(self.clusters, device=losses.device) == least).float()

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        return {**uploads, "cluster": self._chosen(carry["losses"], carry, ctx)}, state

    def remember(self, theta: Tensor, batch: Batch, ctx: ClientContext) -> Tensors:
        return {} if ctx.as_trained else {"losses": self._losses(ctx.layout.split(theta)[1], batch, ctx)}

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        if ctx.as_trained:
            return ctx.logits(theta, images)
        chosen = self._chosen(state["remembered"] @ state["losses"], state, ctx)
        return ctx.logits(ctx.layout.join(chosen @ _models(ctx), ctx.layout.split(theta)[1]), images)

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """k models down, one up with its number."""
        shared = ctx.broadcast["shared"]
        counts = [self.clusters * len(shared), len(shared) + 1]
        return torch.tensor(counts, dtype=torch.float64, device=shared.device)


def _models(ctx: ClientContext) -> Tensor:
    """The shared parts (k, S) of all models."""
    return torch.cat([ctx.broadcast["shared"][None], ctx.broadcast["others"]])
