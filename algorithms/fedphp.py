"""FedPHP: Federated Personalization with Inherited Private Models.

X.-C. Li, D.-C. Zhan, Y. Shao, B. Li, S. Song. ECML PKDD 2021. https://doi.org/10.1007/978-3-030-86486-6_36

    client i:    w_i = w after local epochs of SGD on  (1 - lamda) CE(x, y) + lamda MMD(z, z_p)
                 p_i = (1 - m) w_i + m p_i,  m = mu min(1, c_i / C),  after c_i earlier rounds of training
    server:      w   = sum_i n_i w_i / sum_i n_i
    evaluation:  p_i; of a client that never trained, w

z is the representation of w_i, z_p that of p_i (in a client's first round, of the received w); MMD is their maximum
mean discrepancy within the batch (``raysim/functional/distances.py``). C, how often a client is expected to train, is
the number of rounds times the share of the clients that train in each, as in the authors' code. ``inherit: rounds`` is
PFLlib's rule, m = mu r / R in round r of R, with the initial model as the first p_i: a client that trains for the first
time in a late round then mostly keeps the initial model. (PFLlib evaluates w_i.)

Down and up: the whole model w. Kept by a client: its inherited model p_i. One more forward pass per batch, and the
distances: 1.5 times the cost of FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    F,
    FederatedAlgorithm,
    ParameterLayout,
    Tensor,
    Tensors,
    torch,
)
from raysim.functional.distances import mmd
from raysim.search_space import Range, Tuned


class FedPHP(FederatedAlgorithm):
    """A personal model that inherits more and more from the client's own past, and teaches the shared one."""

    paper = "https://doi.org/10.1007/978-3-030-86486-6_36"
    about = About("own_model", sent="S", kept="a model of its own", evaluated="its own model", cost="1.3, measured 1.5")
    whole_model_kept = "its clients keep a whole model of their own"
    uses_features = True
    depends_on_rounds = True
    needs_body = True

    mu: Annotated[float, Tuned(Range(0.1, 1.0), "nearly all of the interval on which it is defined")] = Field(
        0.9, gt=0, le=1
    )
    """How much of the personal model is inherited at the end of the run."""
    lamda: Annotated[float, Tuned(Range(0.01, 0.5, log=True), "around the authors' 0.05 and 0.1")] = Field(
        0.1, gt=0, lt=1
    )
    """The paper's lambda, the weight of the distance between representations; 0.05 or 0.1 in the authors' code."""
    inherit: Literal["participations", "rounds"] = "participations"
    """What the inherited share grows with: how often the client has trained, or the rounds of the run."""

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"own": theta.clone(), "trained": theta.new_zeros(1)}

    def _own(self, received: Tensor, state: Tensors) -> Tensor:
        """The inherited model; before there is one, what the client received."""
        return state["own"] if self.inherit == "rounds" else torch.where(state["trained"] > 0, state["own"], received)

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        shared = ctx.broadcast["shared"].clone()
        own = self._own(shared, state)
        return {"theta": shared, "own": own, "trained": state["trained"], "optimizer": ctx.optimizer.init(shared)}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        distance = mmd(z, ctx.features(carry["own"], batch.images), batch)
        loss = F.cross_entropy(ctx.head(theta, z), batch.labels, reduction="none")
        return (1 - self.lamda) * loss + self.lamda * distance, ()

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        expected = max(1.0, ctx.num_rounds * ctx.cohort_share)
        share = carry["trained"] / expected if self.inherit == "participations" else ctx.round / ctx.num_rounds
        inherited = self.mu * torch.clamp(torch.as_tensor(share), max=1.0)
        own = (1 - inherited) * carry["theta"] + inherited * carry["own"]
        return {"shared": carry["theta"]}, {"own": own, "trained": carry["trained"] + 1}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return self._own(shared, state)
