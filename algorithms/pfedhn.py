"""pFedHN: Personalized Federated Learning using Hypernetworks.

A. Shamsian, A. Navon, E. Fetaya, G. Chechik. ICML 2021. https://arxiv.org/abs/2103.04628

    server:    w_i = h(v_i; phi), for each client of the round
    client i:  w_i+ = w_i after local epochs of SGD on its own loss
    server:    (phi, v_i) = SGD with the gradient of  mean_i <h(v_i; phi), w_i - w_i+>,  clipped to norm 50

The embedding v_i is the server's, one row per client. Down: w_i; up: its change. The authors visit one client after
another; here all clients of a round get parameters from the same phi, whose step is along their mean, so that
``server_lr`` must be larger for the same progress. The server's momentum and weight decay reach an embedding only in
rounds in which its client takes part. The bias of the last layer starts as the model's own initial (pretrained)
parameters, where the authors' is random.

Kept by a client: nothing that it uses (its last model is kept to be evaluated as trained). As costly for a client as
FedAvg; the server has ``hidden`` times as many parameters as the model.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

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
from raysim.algorithms.hypernetwork import generated, gradients, new_hypernetwork
from raysim.errors import ConfigError
from raysim.search_space import Range, Tuned


class PFedHN(FederatedAlgorithm):
    """A hypernetwork on the server makes each client's whole model from an embedding of it."""

    paper = "https://arxiv.org/abs/2103.04628"
    about = About(
        "hypernetwork",
        sent="S, another one down for each client",
        kept="nothing (an embedding is kept by the server)",
        evaluated="the generated model",
        cost="1; the server trains a hypernetwork",
    )
    uploads = {"shared": Upload("uniform"), "change": Upload("each")}
    shares_nothing = True
    whole_model_kept = "a hypernetwork makes all of a client's parameters"
    weighting: ClassVar[str] = "uniform"

    server_lr: Annotated[
        float, Tuned(Range(1e-3, 1.0, log=True), "from the authors' 0.01 to the step of a whole cohort")
    ] = Field(0.05, gt=0)
    """Learning rate of phi and of the embeddings; 0.01 and 0.05 in the authors' code, whose steps are one client each."""
    server_momentum: Annotated[float, Tuned(None, "the authors' 0.9, or none")] = Field(0.9, ge=0, lt=1)
    """Momentum of these steps."""
    server_decay: Annotated[float, Tuned(None, "the authors' 0.001, or none")] = Field(1e-3, ge=0)
    """Weight decay of these steps."""
    clip_norm: Annotated[float | None, Tuned(None, "against divergence only")] = Field(50.0, gt=0)
    """The gradient of phi and the embeddings is scaled down to this norm. null: never."""
    embedding: Annotated[int, Tuned([8, 32, 128], "around the authors' (1 + clients / 4)")] = Field(32, ge=1)
    """Length of an embedding; 1 + a quarter of the number of clients in the authors' code."""
    hidden: Annotated[int, Tuned([25, 50, 100], "the authors' 100 and less")] = Field(100, ge=1)
    """Width of the hypernetwork's hidden layers."""
    layers: Annotated[int, Tuned(None, "the authors' 3")] = Field(3, ge=0)
    """How many hidden layers it has after the first."""

    def personal_patterns(self) -> list[str]:
        return ["*"]

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        if set(ctx.layout.statistics) & set(ctx.layout.names[ctx.layout.num_shared_tensors :]):
            raise ConfigError(
                f"algorithm.name: {self.name} generates parameters, and running statistics of BatchNorm layers are none: "
                "keep them shared, or take a model without"
            )
        start = ctx.layout.split(ctx.initial)[1]
        weights = new_hypernetwork(self.embedding, self.hidden, self.layers, start, ctx.generator)
        return {**weights, **{f"momentum.{name}": torch.zeros_like(value) for name, value in weights.items()}}

    def server_row(self, ctx: ServerContext) -> Tensors:
        embedding = torch.randn(self.embedding, generator=ctx.generator)
        return {"embedding": embedding, "momentum": torch.zeros_like(embedding)}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        return {"generated": generated(_weights(server_state), clients.rows["embedding"])}

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        weights, embeddings = _weights(server_state), clients.rows["embedding"]
        shares = ctx.num_samples[clients.ids] if self.weighting == "samples" else torch.ones(len(clients.ids))
        shares = (shares / shares.sum()).float()
        gradient, of_embeddings = gradients(weights, embeddings, clients.uploads["change"], shares, self.clip_norm)
        new: Tensors = {}
        for name, weight in weights.items():
            moment = server_state[f"momentum.{name}"]
            new[name], new[f"momentum.{name}"] = self._stepped(weight, gradient[name], moment)
        embeddings, momentum = self._stepped(embeddings, of_embeddings, clients.rows["momentum"])
        return mean["shared"], new, {"embedding": embeddings, "momentum": momentum}

    def _stepped(self, value: Tensor, gradient: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        momentum = self.server_momentum * momentum + gradient + self.server_decay * value
        return value - self.server_lr * momentum, momentum

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"trained": layout.split(theta)[1]}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        theta = ctx.layout.join(ctx.broadcast["shared"], state["generated"])
        return {"theta": theta, "generated": state["generated"], "optimizer": ctx.optimizer.init(theta)}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        shared, trained = ctx.layout.split(carry["theta"])
        return {"shared": shared, "change": carry["generated"] - trained}, {"trained": trained}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return ctx.layout.join(shared, state["trained"] if ctx.as_trained else state["generated"])


def _weights(server_state: Tensors) -> Tensors:
    return {name: value for name, value in server_state.items() if not name.startswith("momentum.")}
