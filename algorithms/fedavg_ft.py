"""FedAvg with fine-tuning: Federated Asymptotics, a model to compare federated learning algorithms.

G. Cheng, K. Chadha, J. Duchi. AISTATS 2023 (first "Fine-tuning is Fine in Federated Learning").
https://arxiv.org/abs/2108.07313

    client i:    w_i = w after local epochs of SGD on its own loss
    server:      w   = sum_i n_i w_i / sum_i n_i
    evaluation:  w after fine_tuning_steps of SGD (adapt_lr) on batches of client i's training samples

Down and up: the shared parameters. Kept by a client: nothing; fine-tuning leaves no trace. It is SGD with a learning rate and
a momentum of its own, whatever optimiser and schedule train the model. A round costs as much as FedAvg's, an evaluation as
many more steps for every client that is evaluated.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from raysim.algorithms.base import About, ClientContext, FederatedAlgorithm, Optimizer
from raysim.search_space import Range, Tuned


class FedAvgFT(FederatedAlgorithm):
    """FedAvg whose model every client fine-tunes before it is evaluated."""

    paper = "https://arxiv.org/abs/2108.07313"
    about = About("baseline", sent="S", kept="nothing", evaluated="after `fine_tuning_steps` of SGD", cost="1")

    fine_tuning_steps: Annotated[int, Tuned([1, 5, 10, 20], "around the default")] = Field(10, ge=1)
    """Steps of SGD on the whole model before evaluation, each on a batch of another shuffled epoch."""
    adapt_lr: Annotated[float | None, Tuned(Range(1e-4, 1.0, log=True), "as train.optimizer.lr")] = Field(None, gt=0)
    """Learning rate of these steps, the same in every round. null: ``train.optimizer.lr``."""
    adapt_momentum: Annotated[float, Tuned([0.0, 0.9], "without, and the usual value")] = Field(0.0, ge=0, lt=1)
    """Momentum of these steps; from one to the next it is kept."""

    @model_validator(mode="after")
    def _steps_are_taken(self) -> FedAvgFT:
        if not self.fine_tuning_steps and (self.adapt_lr is not None or self.adapt_momentum):
            raise ValueError("'adapt_lr' and 'adapt_momentum' are about fine-tuning, and 'fine_tuning_steps' is 0")
        return self

    def adapt_steps(self) -> int:
        return self.fine_tuning_steps

    def adapt_optimizer(self, ctx: ClientContext) -> Optimizer:
        return ctx.sgd(self.adapt_lr, self.adapt_momentum)
