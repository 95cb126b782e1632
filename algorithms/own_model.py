"""What Ditto and pFedMe have in common: a whole model of a client's own beside the shared one."""

from __future__ import annotations

from raysim.algorithms.base import Carry, ClientContext, FederatedAlgorithm, ParameterLayout, Tensor, Tensors


class OwnModel(FederatedAlgorithm):
    """A client keeps ``own`` (P,), which starts as the initial model, and is evaluated with it."""

    whole_model_kept = "its clients keep a whole model of their own"

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"own": theta.clone()}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        return {"shared": carry["theta"]}, {"own": carry["own"]}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return state["own"]
