"""Per-FedAvg: Personalized Federated Learning with Theoretical Guarantees, a model-agnostic meta-learning approach.

A. Fallah, A. Mokhtari, A. Ozdaglar. NeurIPS 2020. https://arxiv.org/abs/2002.07948

    client i, for each pair of batches (D, D'):   v = w - a g(w, D)
        first order                               w = w - lr g(v, D')
        Hessian-free                              w = w - lr (g(v, D') - a (g(w + r, D) - g(w - r, D)) / (2 delta)),
                                                      r = delta g(v, D')
    server:      w = sum_i n_i w_i / sum_i n_i
    evaluation:  w - a g(w, D) on a batch D of client i's training samples

The step with a (``adapt_lr``) is plain SGD, whatever optimiser takes the step with lr (the paper's beta) and however
that is scheduled: a is part of what is learned, an initial model for exactly this step.

Down and up: the whole model. Kept by a client: nothing. As costly as FedAvg. D and D' are the two batches of a pair;
where the second would be empty, because no more than ``batch_size`` samples are left, the first is divided into two.
(In the code of the FedPerfix paper such a pair changes nothing, so that a client with so few samples never learns.)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, Batch, Carry, ClientContext, FederatedAlgorithm, Optimizer, Tensors
from raysim.search_space import Range, Tuned


class PerFedAvg(FederatedAlgorithm):
    """First-order meta-learning: an initial model that is good after one step on a client's own data."""

    paper = "https://arxiv.org/abs/2002.07948"
    about = About("meta", sent="S", kept="nothing", evaluated="after one step of SGD", cost="1; 2 with `hessian_free`")
    batches_per_step = 2

    adapt_lr: Annotated[float | None, Tuned(Range(1e-4, 1.0, log=True), "as train.optimizer.lr")] = Field(None, gt=0)
    """a, the learning rate of the inner step in training and of the step before evaluation. null: ``train.optimizer.lr``."""
    hessian_free: bool = False
    """Approximate the second-order term by two more gradients (twice the cost of the first-order method)."""
    delta: Annotated[float, Tuned(None, "the step of a finite difference")] = Field(0.001, gt=0)
    """hessian_free: step of the finite difference, in units of the gradient."""

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        theta = carry["theta"]
        first, second = ctx.halves(batch)
        gradient, loss = ctx.gradient(theta, first)
        inner = self.adapt_optimizer(ctx)
        ahead, _ = inner.step(theta, gradient, inner.init(theta))
        gradient, _ = ctx.gradient(ahead, second)
        if self.hessian_free:
            forward, _ = ctx.gradient(theta + self.delta * gradient, first)
            backward, _ = ctx.gradient(theta - self.delta * gradient, first)
            gradient = gradient - inner.lr * (forward - backward) / (2 * self.delta)
        theta, optimizer = ctx.optimizer.step(theta, gradient, carry["optimizer"])
        return {"theta": theta, "optimizer": optimizer}, {"loss": loss}

    def adapt_steps(self) -> int:
        return 1

    def adapt_optimizer(self, ctx: ClientContext) -> Optimizer:
        return ctx.sgd(self.adapt_lr)
