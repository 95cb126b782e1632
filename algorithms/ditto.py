"""Ditto: Fair and Robust Federated Learning Through Personalization.

T. Li, S. Hu, A. Beirami, V. Smith. ICML 2021. https://arxiv.org/abs/2012.04221

    client i, for each batch:  w_i = w_i - lr g(w_i),  v_i = v_i - lr (g(v_i) + lamda (v_i - w))
    server:                    w = sum_i n_i w_i / sum_i n_i
    evaluation:                v_i

Down and up: the whole model w. Kept by a client: its own model v_i, which is drawn to w as it was received. As in the
authors' code both take their step on the same batch: twice the cost of FedAvg.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, Batch, Carry, ClientContext, Tensors
from raysim.algorithms.own_model import OwnModel
from raysim.search_space import Tuned


class Ditto(OwnModel):
    """A personal model beside the shared one, drawn to it."""

    paper = "https://arxiv.org/abs/2012.04221"
    about = About("own_model", sent="S", kept="a model of its own", evaluated="its own model", cost="2")
    trains_own_model = True

    lamda: Annotated[float, Tuned([0.1, 1.0, 2.0], "the paper's values, but for strong attacks")] = Field(1.0, gt=0)
    """The paper's lambda, the strength of the pull; the authors choose from {0.1, 1, 2}."""

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        shared, own = ctx.broadcast["shared"].clone(), state["own"]
        optimizers = {"optimizer": ctx.optimizer.init(shared), "own_optimizer": ctx.optimizer.init(own)}
        return {"theta": shared, "own": own, **optimizers}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        carry, metrics = super().client_step(carry, batch, ctx)
        gradient, loss = ctx.gradient(carry["own"], batch)
        gradient = gradient + self.lamda * ctx.drift(carry["own"])
        own, optimizer = ctx.optimizer.of_own_model().step(carry["own"], gradient, carry["own_optimizer"])
        return {**carry, "own": own, "own_optimizer": optimizer}, {**metrics, "personal_loss": loss}
