"""APFL: Adaptive Personalized Federated Learning.

Y. Deng, M. M. Kamani, M. Mahdavi. 2020. https://arxiv.org/abs/2003.13461

    client i, for each batch:  w_i = w_i - lr g(w_i),  v_i = v_i - lr g(v_i)
                               a_i = a_i - lr (<v_i - w_i, a_i g(v_i) + (1 - a_i) g(w_i)> + 0.02 a_i), clipped to [0, 1]
    at the end of the round:   v_i = a_i v_i + (1 - a_i) w_i, which is what is evaluated
    server:                    w = sum_i n_i w_i / sum_i n_i

Down and up: the whole model w. Kept by a client: its own model v_i and its weight a_i. This is what the code of the
FedPerfix paper does. With ``mixture: step`` it is the authors' Algorithm 1: with m_i = a_i v_i + (1 - a_i) w_i,

    v_i = v_i - lr a_i g(m_i),  a_i = a_i - lr <v_i - w_i, g(m_i)>, clipped to [0, 1]

v_i is kept as it is, and m_i is evaluated. Both variants take two gradients per batch: twice the cost of FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Literal

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
from raysim.search_space import Range, Tuned


class APFL(FederatedAlgorithm):
    """A personal model beside the shared one, mixed with a weight that each client learns."""

    paper = "https://arxiv.org/abs/2003.13461"
    about = About("own_model", sent="S", kept="a model of its own, a mixing weight", evaluated="the mixture", cost="2")
    whole_model_kept = "its clients keep a whole model of their own"
    trains_own_model = True

    alpha: Annotated[float, Tuned(Range(0.05, 0.95), "nearly all of the interval on which it is defined")] = Field(
        0.25, ge=0, le=1
    )
    """Initial weight of the personal model; 0.25 in the FedPerfix paper's experiments. From 1 it hardly moves, so that
    the personal model is that of Local, at twice the price."""
    mixture: Literal["round", "step"] = "round"
    """``round``: the models train apart and are mixed at the end of a round, as in the FedPerfix paper's code. ``step``: the
    gradient of the personal model is taken at the mixture in every step, as in the authors' Algorithm 1."""

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {"own": theta.clone(), "alpha": theta.new_full((1,), self.alpha)}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        shared, own = ctx.broadcast["shared"].clone(), state["own"]
        optimizers = {"shared_optimizer": ctx.optimizer.init(shared), "own_optimizer": ctx.optimizer.init(own)}
        return {"shared": shared, "own": own, "alpha": state["alpha"], **optimizers}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        shared, own, alpha = carry["shared"], carry["own"], carry["alpha"]
        shared_gradient, loss = ctx.gradient(shared, batch)
        at = own if self.mixture == "round" else alpha * own + (1 - alpha) * shared
        own_gradient, own_loss = ctx.gradient(at, batch)
        new_shared, shared_optimizer = ctx.optimizer.step(shared, shared_gradient, carry["shared_optimizer"])
        if self.mixture == "round":
            new_own, own_optimizer = ctx.optimizer.of_own_model().step(own, own_gradient, carry["own_optimizer"])
            mixed_gradient = alpha * own_gradient + (1 - alpha) * shared_gradient
            slope = ctx.dot(new_own - new_shared, mixed_gradient) + 0.02 * alpha
        else:
            new_own, own_optimizer = ctx.optimizer.of_own_model().step(
                own, alpha * own_gradient, carry["own_optimizer"]
            )
            slope = ctx.dot(own - shared, own_gradient)
        alpha = (alpha - ctx.optimizer.lr * slope).clamp(0, 1)
        optimizers = {"shared_optimizer": shared_optimizer, "own_optimizer": own_optimizer}
        metrics = {"loss": loss, "personal_loss": own_loss, "alpha": alpha.squeeze()}
        return {"shared": new_shared, "own": new_own, "alpha": alpha, **optimizers}, metrics

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        shared, own, alpha = carry["shared"], carry["own"], carry["alpha"]
        if self.mixture == "round":
            own = torch.lerp(shared, own, alpha)
        return {"shared": shared}, {"own": own, "alpha": alpha}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return state["own"] if self.mixture == "round" else torch.lerp(shared, state["own"], state["alpha"])
