"""pFedMe: Personalized Federated Learning with Moreau Envelopes.

C. T. Dinh, N. H. Tran, T. D. Nguyen. NeurIPS 2020. https://arxiv.org/abs/2006.08848

    client i, for each batch:  K times  v_i = v_i - personal_lr (g(v_i) + lamda (v_i - w_i)),  from v_i = w_i = w on
                               w_i = w_i - lr lamda (w_i - v_i)
    server:                    w = (1 - beta) w + beta sum_i n_i w_i / sum_i n_i
    evaluation:                v_i

Down and up: the whole model w. Kept by a client: its own model v_i, for evaluation. K gradients per batch: K times the
cost of FedAvg. The mean is weighted by samples, as in the authors' code (the paper has equal weights), and the cohort
trains, where in the paper all clients do and some send. The authors' code adds 0.001 v_i to the inner gradient, which
the paper has not: ``inner_decay``. That code and PFLlib's evaluate w in place of v_i.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, Batch, Carry, ClientContext, ServerContext, Tensor, Tensors
from raysim.algorithms.own_model import OwnModel
from raysim.search_space import Range, Tuned


class PFedMe(OwnModel):
    """A personal model per client, the proximal point of the shared one."""

    paper = "https://arxiv.org/abs/2006.08848"
    about = About("own_model", sent="S", kept="a model of its own", evaluated="its own model", cost="K")

    lamda: Annotated[float, Tuned(Range(5.0, 50.0, log=True), "around the authors' 15 to 30")] = Field(15.0, gt=0)
    """The paper's lambda, the strength of the pull between the two models; 15 to 30 in the authors' experiments."""
    K: Annotated[int, Tuned(None, "it multiplies the cost")] = Field(5, ge=1)
    """Steps of the personal model on each batch."""
    personal_lr: Annotated[
        float, Tuned(Range(3e-3, 0.3, log=True), "a factor of 3 around the authors' 0.01 to 0.1")
    ] = Field(0.01, gt=0)
    """Learning rate of these steps, plain SGD; ``train.optimizer`` takes the step of w_i."""
    beta: Annotated[float, Tuned(Range(0.5, 4.0, log=True), "around the authors' 1, 2 and 4")] = Field(1.0, gt=0)
    """The server's step towards the mean; 1 replaces w by it."""
    inner_decay: Annotated[float, Tuned(None, "0.001 or none")] = Field(0.0, ge=0)
    """Weight decay in the inner steps: 0.001 in the authors' code, none in the paper."""

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        return shared + self.beta * (mean["shared"] - shared), server_state

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        shared = ctx.broadcast["shared"].clone()
        return {"theta": shared, "own": shared, "optimizer": ctx.optimizer.init(shared)}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        w, own, inner = carry["theta"], carry["own"], ctx.sgd(self.personal_lr)
        for _ in range(self.K):
            gradient, loss = ctx.gradient(own, batch)
            pull = self.lamda * (own - w) + self.inner_decay * own
            own, _ = inner.step(own, gradient + ctx.trained(pull), inner.init(own))
        difference = w - own
        # Running statistics follow the personal model as it is, without lamda.
        gradient = difference + (self.lamda - 1) * ctx.trained(difference)
        w, optimizer = ctx.optimizer.step(w, gradient, carry["optimizer"])
        return {"theta": w, "own": own, "optimizer": optimizer}, {"loss": loss}
