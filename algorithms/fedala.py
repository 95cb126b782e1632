"""FedALA: Adaptive Local Aggregation for Personalized Federated Learning.

J. Zhang, Y. Hua, H. Wang, T. Song, Z. Xue, R. Ma, H. Guan. AAAI 2023. https://arxiv.org/abs/2212.01197

    client i, as it receives w, for the last p tensors of its own model o_i:
        w_i = o_i + W_i (w - o_i);  on each batch  W_i = clip(W_i - eta g(w_i) (w - o_i), 0, 1),  and w_i again
                                       in ``initial_epochs`` epochs when it merges for the first time, in one after that
    all other tensors:  w_i = w;  then local epochs of SGD from w_i
    server:             w = sum_i n_i w_i / sum_i n_i
    evaluation:         w_i after the merge

Down and up: the whole model w. Kept by a client: the last p tensors of its own model, W_i, which starts at 1, and
whether it has merged. One more epoch per round, ``initial_epochs`` in that of the first merge; before an evaluation one
step of the merge on one batch (``initial_epochs`` steps before the first merge). The authors repeat the first merge until
the loss is stable, which takes 11 epochs or more; for clients that train at the same time the number is fixed. They learn
W_i on a random 80 % of the samples, here on all. (PFLlib merges all clients in every round.)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    FederatedAlgorithm,
    ParameterLayout,
    Tensor,
    Tensors,
    torch,
)
from raysim.errors import ConfigError
from raysim.search_space import Range, Tuned


class FedALA(FederatedAlgorithm):
    """Each client learns, weight by weight, how much of the server's last layers it takes over."""

    paper = "https://arxiv.org/abs/2212.01197"
    about = About(
        "mixing",
        sent="S",
        kept="its last layers, a weight for each of their entries",
        evaluated="after merging them",
        cost="(E + 1) / E; (E + 11) / E at a first merge",
    )
    whole_model_kept = "its clients keep the last p tensors of their own model"
    whole_phases = ("merge",)

    eta: Annotated[float, Tuned(Range(0.1, 10.0, log=True), "a factor of 10 around the authors' 1")] = Field(1.0, gt=0)
    """Learning rate of W_i."""
    p: Annotated[int, Tuned(None, "it says which layers are merged")] = Field(2, ge=0)
    """How many tensors are merged, counted from the last: 2 are weight and bias of a ViT's head; 0 are all tensors."""
    initial_epochs: Annotated[
        int, Tuned(None, "it multiplies the cost; 11 are the fewest that the authors' code takes")
    ] = Field(11, ge=1)
    """Epochs of a client's first merge."""

    def _last(self, layout: ParameterLayout) -> slice:
        """Where the tensors that are merged lie in ``theta``; running statistics of BatchNorm come after all others."""
        sizes = [size for name, size in zip(layout.names, layout.sizes, strict=True) if name not in layout.statistics]
        if self.p > len(sizes):
            raise ConfigError(f"algorithm.p: the model has {len(sizes)} tensors, not {self.p}")
        return slice(sum(sizes) - sum(sizes[-self.p :]), sum(sizes))

    def _merged(self, shared: Tensor, own: Tensor, weights: Tensor, layout: ParameterLayout) -> Tensor:
        """The parameters (P,) after a merge."""
        last = self._last(layout)
        return torch.cat([shared[: last.start], torch.lerp(own, shared[last], weights), shared[last.stop :]])

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        own = theta[self._last(layout)]
        return {"own": own, "weights": torch.ones_like(own), "merged": theta.new_zeros(1)}

    def epochs(self, local_epochs: int) -> list[str]:
        return ["merge"] * self.initial_epochs + ["train"] * local_epochs

    def takes_part(self, state: Tensors, phases: list[str], ctx: ClientContext) -> Tensor:
        differs = (state["own"] != ctx.broadcast["shared"][self._last(ctx.layout)]).any()
        differs = differs & (not ctx.as_trained)  # such a client has nothing new to merge
        first = state["merged"][0] == 0
        merges = [differs & first if epoch else differs for epoch in range(self.initial_epochs)]
        return torch.stack([*merges, *[torch.ones_like(differs)] * (len(phases) - self.initial_epochs)])

    def adapt_steps(self) -> int:
        return self.initial_epochs

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        theta = self._merged(ctx.broadcast["shared"], state["own"], state["weights"], ctx.layout)
        return {"theta": theta, "optimizer": ctx.optimizer.init(theta), **state}

    def _merge(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        own, shared, last = carry["own"], ctx.broadcast["shared"], self._last(ctx.layout)
        gradient, loss = ctx.gradient(carry["theta"], batch)
        slope = gradient[last] * (shared[last] - own)
        weights = (carry["weights"] - self.eta * slope).clamp(0, 1)
        theta = self._merged(shared, own, weights, ctx.layout)
        return {**carry, "theta": theta, "weights": weights, "merged": torch.ones_like(carry["merged"])}, {
            "merge": loss
        }

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        if ctx.phase == "merge":
            return self._merge(carry, batch, ctx)
        return super().client_step(carry, batch, ctx)

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        theta = carry["theta"]
        state = {"own": theta[self._last(ctx.layout)], "weights": carry["weights"], "merged": carry["merged"]}
        return {"shared": theta}, state

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return self._merged(shared, state["own"], state["weights"], ctx.layout)

    def adapt_init(self, theta: Tensor, state: Tensors, ctx: ClientContext) -> Carry:
        return {"theta": theta, **state}

    def adapt(self, carry: Carry, batch: Batch, ctx: ClientContext) -> Carry:
        return self._merge(carry, batch, ctx)[0]
