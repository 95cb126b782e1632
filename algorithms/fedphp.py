"""FedPHP: Federated Personalization with Inherited Private Models.

X.-C. Li, D.-C. Zhan, Y. Shao, B. Li, S. Song. ECML PKDD 2021. https://doi.org/10.1007/978-3-030-86486-6_36

    client i:    w_i = w after local epochs of SGD on  (1 - lamda) CE(x, y) + lamda MMD(z, z_p)
                 p_i = (1 - m) w_i + m p_i,  m = mu r / R  in round r of R, from 0
    server:      w   = sum_i n_i w_i / sum_i n_i
    evaluation:  p_i

z is the representation of w_i, z_p that of p_i; MMD is their maximum mean discrepancy within the batch
(``raysim/functional/distances.py``). The authors' code lets m grow with how often a client has taken part, which is the
same with full participation; here, as in PFLlib, with the rounds. (PFLlib evaluates w_i.)

Down and up: the whole model w. Kept by a client: its inherited model p_i. One more forward pass per batch: 1.3 times
the cost of FedAvg.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from algorithms.base import (
    Batch,
    Carry,
    ClientContext,
    F,
    FederatedAlgorithm,
    ParameterLayout,
    Tensor,
    Tensors,
)
from raysim.functional.distances import mmd


class FedPHP(FederatedAlgorithm):
    """A personal model that inherits more and more from the client's own past, and teaches the shared one."""

    paper = "https://doi.org/10.1007/978-3-030-86486-6_36"
    whole_model_kept = "its clients keep a whole model of their own"
    uses_features = True

    mu: float = Field(0.9, gt=0, le=1)
    """How much of the personal model is inherited at the end of the run."""
    lamda: float = Field(0.1, gt=0, lt=1)
    """The paper's lambda, the weight of the distance between representations; 0.05 or 0.1 in the authors' code."""

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"own": theta.clone()}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        shared = ctx.broadcast["shared"].clone()
        return {"theta": shared, "own": state["own"], "optimizer": ctx.optimizer.init(shared)}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        distance = mmd(z, ctx.features(carry["own"], batch.images), batch)
        loss = F.cross_entropy(ctx.head(theta, z), batch.labels, reduction="none")
        return (1 - self.lamda) * loss + self.lamda * distance, ()

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        return ctx.gradient_of(self.losses, carry["theta"], batch, carry)[:2]

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        inherited = self.mu * ctx.round / ctx.num_rounds
        own = (1 - inherited) * carry["theta"] + inherited * carry["own"]
        return {"shared": carry["theta"]}, {"own": own}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return state["own"]
