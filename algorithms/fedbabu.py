"""FedBABU: Towards Enhanced Representation for Federated Image Classification.

J. Oh, S. Kim, S.-Y. Yun. ICLR 2022. https://arxiv.org/abs/2106.06042

    client i:    w_i = w after local epochs of SGD on the body, under the head's initial value h_0
    server:      w   = sum_i n_i w_i / sum_i n_i
    evaluation:  (w, h_0) after fine_tuning_steps of SGD (adapt_lr) on batches of client i's training samples

Down and up: the whole model, whose head never changes. Kept by a client: nothing. As costly as FedAvg. Fine-tuning
leaves no trace; it is SGD with a learning rate and a momentum of its own, whatever optimiser and schedule train the
body.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from raysim.algorithms.base import About, Batch, Carry, ClientContext, Tensors, masked_step
from raysim.algorithms.fedavg_ft import FedAvgFT
from raysim.search_space import Tuned


class FedBABU(FedAvgFT):
    """Everything is shared, only the body trains; the whole model is fine-tuned before each evaluation."""

    paper = "https://arxiv.org/abs/2106.06042"
    about = About(
        "partial",
        sent="S; the head never trains",
        kept="nothing",
        evaluated="after `fine_tuning_steps` of SGD",
        cost="1",
    )
    needs_body = True

    fine_tuning_steps: Annotated[int, Tuned([1, 5, 10, 20], "from the 1 of the FedPerfix paper's code upwards")] = (
        Field(1, ge=0)
    )
    """Steps of SGD on the whole model before evaluation, each on a batch of another shuffled epoch. The FedPerfix paper's
    code takes one; the authors of FedBABU fine-tune for epochs, with momentum 0.9."""

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        return masked_step(~ctx.mask("head"), carry, batch, ctx)
