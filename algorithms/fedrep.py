"""FedRep: Exploiting Shared Representations for Personalized Federated Learning.

L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai. ICML 2021. https://arxiv.org/abs/2102.07078

    client i:  h_i = h_i after head epochs of SGD with the body w fixed
               w_i = w after body epochs of SGD with the head h_i fixed
    server:    w = sum_i n_i w_i / sum_i n_i

Down and up: the body w. Kept by a client: the head h_i. As costly as FedAvg, twice that with one local epoch. As in the
authors' code, local epochs are divided: the last ``body_epochs`` of them train the body, those before it the head. (The
code of the FedPerfix paper trains both together, which is FedPer.)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raysim.algorithms.base import About, Batch, Carry, ClientContext, FederatedAlgorithm, Tensors, masked_step
from raysim.search_space import Tuned


class FedRep(FederatedAlgorithm):
    """A personal head and a shared body that train in turn: head epochs first, then body epochs."""

    paper = "https://arxiv.org/abs/2102.07078"
    about = About(
        "partial", sent="the body", kept="the head, trained before the body", evaluated="as it is", cost="1; 2 if E = 1"
    )
    needs_body = True

    personal: list[str] = ["head"]
    """Patterns of the personal parameters, which train first; with a plugin for instance ``[adapter, head]``."""
    body_epochs: Annotated[int, Tuned(None, "it divides the local epochs")] = Field(1, ge=1)
    """Local epochs that train the body; the others train the head. Each gets at least one: a single local epoch costs
    two, and surplus body epochs are cut."""

    @model_validator(mode="after")
    def _has_both(self) -> FedRep:
        if not self.personal:
            raise ValueError("'personal' must name at least one pattern: it is what trains in the head epochs")
        return self

    def epochs(self, local_epochs: int) -> list[str]:
        body = min(self.body_epochs, max(1, local_epochs - 1))
        return ["head"] * max(1, local_epochs - body) + ["body"] * body

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        carry = super().client_init(state, ctx)
        # One optimiser each, as in the authors' code: AdamW's or momentum's state of one must not affect the other.
        return {"theta": carry["theta"], "head": carry["optimizer"], "body": carry["optimizer"]}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        trains = ctx.is_personal == (ctx.phase == "head")
        own = {"theta": carry["theta"], "optimizer": carry[ctx.phase]}
        new, metrics = masked_step(trains, own, batch, ctx)
        return {**carry, "theta": new["theta"], ctx.phase: new["optimizer"]}, metrics
