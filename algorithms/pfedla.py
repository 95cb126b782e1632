"""pFedLA: Layer-wised Model Aggregation for Personalized Federated Learning.

X. Ma, J. Zhang, S. Guo, W. Xu. CVPR 2022. https://arxiv.org/abs/2205.03993

    server:    a_i = h(v_i; phi_i), for each parameter tensor l a distribution over all N clients
               w_i^l = sum_j a_ij^l m_j^l
    client i:  w_i+ = w_i after local epochs of SGD on its own loss
    server:    m_i = w_i+,  (phi_i, v_i) = (phi_i, v_i) - server_lr * the gradient of  <w_i, w_i - w_i+>

Every client has a hypernetwork of its own on the server: an embedding, three layers with ReLU, and for each tensor a
linear layer to N outputs, ReLU, divided by their sum (its own model where all are 0). There is no code of the authors;
sizes, the first weights (uniform in [0, 1], so that a begins near 1 / N) and the rate are those of FL-bench, whose step
goes up the loss if its sign is read as it is written; this one goes down. Clients of a round are computed from the same
models m, in FL-bench one after another.

Down: w_i; up: its change. The server keeps m_i and (phi_i, v_i) of each client on disk, and reads the models of all N for
every client batch. Evaluated: w_i. As costly for a client as FedAvg.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import (
    About,
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
from raysim.algorithms.hypernetwork import linear
from raysim.search_space import Range, Tuned

ROWS_AT_A_TIME = 64


class PFedLA(FederatedAlgorithm):
    """The server mixes all clients' models for each client, layer by layer, by weights that a hypernetwork learns."""

    paper = "https://arxiv.org/abs/2205.03993"
    about = About(
        "mixing",
        sent="S, another one down for each client",
        kept="nothing (model and hypernetwork are kept by the server)",
        evaluated="the mixture",
        cost="1",
    )
    uploads = {"shared": Upload("uniform"), "change": Upload("each")}
    shares_nothing = True
    whole_model_kept = "each client has a mixture of all clients' models"

    server_lr: Annotated[
        float,
        Tuned(Range(0.5, 5000.0, log=True), "with 48 clients self weights hardly move below, and models below 500"),
    ] = Field(100.0, gt=0)
    """Learning rate of the hypernetworks, plain SGD; 0.005 in FL-bench, with which weights hardly leave 1 / N: their slope is
    divided by the sum of all outputs, which begins at about N times ``hidden``."""
    embedding: Annotated[int, Tuned(None, "FL-bench's 100, or less where N is small")] = Field(100, ge=1)
    """Length of a client's embedding."""
    hidden: Annotated[int, Tuned(None, "FL-bench's 100, or less where N is small")] = Field(100, ge=1)
    """Width of the three layers."""

    def personal_patterns(self) -> list[str]:
        return ["*"]

    def server_row(self, ctx: ServerContext) -> Tensors:
        draw, width, tensors = ctx.generator, self.hidden, len(ctx.layout.names)
        parts = {"v": torch.randn(self.embedding, generator=draw)}
        for i, inputs in enumerate((self.embedding, width, width)):
            parts[f"W{i}"], parts[f"b{i}"] = linear(width, inputs, draw)
        parts["W"] = torch.rand(tensors * ctx.num_clients, width, generator=draw)
        parts["b"] = torch.zeros(tensors * ctx.num_clients)
        return {"model": ctx.initial, **{name: part.flatten() for name, part in parts.items()}}

    def weights(self, rows: Tensors, ids: Tensor, ctx: ServerContext) -> Tensor:
        """a (K, tensors, N) of clients with these rows and ids (K,)."""
        h, count = rows["v"], len(ids)
        for i, inputs in enumerate((self.embedding, self.hidden, self.hidden)):
            matrix = rows[f"W{i}"].view(count, self.hidden, inputs)
            h = (torch.einsum("kij,kj->ki", matrix, h) + rows[f"b{i}"]).relu()
        out = torch.einsum("kij,kj->ki", rows["W"].view(count, -1, self.hidden), h) + rows["b"]
        out = out.view(count, len(ctx.layout.names), ctx.num_clients).relu()
        own = torch.zeros_like(out)
        known = ids < ctx.num_clients
        own[known, :, ids[known]] = 1.0
        total = out.sum(dim=2, keepdim=True)
        return torch.where(total > 0, out / total.clamp(min=1e-30), own)

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        return {"mixed": self._mixed(self.weights(clients.rows, clients.ids, ctx), ctx)}

    def _mixed(self, weights: Tensor, ctx: ServerContext) -> Tensor:
        """w (K, P) for a (K, tensors, N)."""
        parts = [weights.new_zeros(len(weights), size) for size in ctx.layout.sizes]
        for ids, models in _models(ctx):
            pieces = models.split(ctx.layout.sizes, dim=1)
            parts = [
                part + weights[:, i, ids] @ piece for i, (part, piece) in enumerate(zip(parts, pieces, strict=True))
            ]
        return torch.cat(parts, dim=1)

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        change = clients.uploads["change"]
        names = [name for name in clients.rows if name != "model"]
        inputs = {name: clients.rows[name].detach().clone().requires_grad_() for name in names}
        with torch.enable_grad():
            weights = self.weights(inputs, clients.ids, ctx)
            # <w_i, w_i - w_i+> is linear in a: its factors are the inner products with every client's model.
            products = torch.zeros_like(weights)
            for ids, models in _models(ctx):
                pieces = zip(change.split(ctx.layout.sizes, 1), models.split(ctx.layout.sizes, 1), strict=True)
                products[:, :, ids] = torch.stack([c @ m.T for c, m in pieces], dim=1)
            slopes = torch.autograd.grad((weights * products).sum(), list(inputs.values()), allow_unused=True)
        mixed = self._mixed(weights.detach(), ctx)
        new = {
            name: value.detach() - self.server_lr * (slope if slope is not None else 0.0)
            for (name, value), slope in zip(inputs.items(), slopes, strict=True)
        }
        return mean["shared"], server_state, {"model": mixed - change, **new}

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"trained": theta}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        theta = state["mixed"]
        return {"theta": theta, "mixed": theta, "optimizer": ctx.optimizer.init(theta)}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        theta = carry["theta"]
        return {"shared": ctx.broadcast["shared"], "change": carry["mixed"] - theta}, {"trained": theta}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return state["trained"] if ctx.as_trained else state["mixed"]


def _models(ctx: ServerContext) -> Iterator[tuple[Tensor, Tensor]]:
    """The models of all clients, some at a time: ids (J,) and models (J, P)."""
    for ids in torch.arange(ctx.num_clients).split(ROWS_AT_A_TIME):
        models, known = ctx.initial.repeat(len(ids), 1), ctx.has_row(ids)
        if known.any():
            models[known] = ctx.rows(ids[known], "model")["model"]
        yield ids, models
