"""The contract between an algorithm and the engine: write one client, the engine runs thousands.

An algorithm is a subclass of ``FederatedAlgorithm`` that overrides what it does differently from FedAvg. Its
hyperparameters are annotated class attributes, the keys of the ``algorithm:`` block of a YAML file. Its functions are
pure: they take tensors, return new ones, and keep nothing on ``self``. They are written for one client; the engine calls
them directly, or for a whole client batch at once through ``torch.func.vmap``. So inside ``client_*``, ``personalize``
and ``adapt``: no in-place change of an argument, no ``.item()``, no ``if`` on a tensor (``torch.where`` instead). What
may be branched on are Python values: hyperparameters, ``ctx.phase``, ``ctx.epoch``, ``ctx.round``.

A round, for a client with parameters ``theta = join(shared, personal)``::

    ctx.broadcast = broadcast(shared, server_state)           the server sends
    carry = client_init(state, ctx)                           the client starts,
    for phase in epochs(local_epochs), for each batch:
        carry, metrics = client_step(carry, batch, ctx)       trains,
    uploads, state = client_final(carry, ctx)                 sends uploads, keeps state
    shared, server_state = server_step(shared, server_state, mean of the uploads, ctx)

``docs/algorithms.md`` shows how fifteen methods of the literature fit, ``docs/write_your_own.md`` builds one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from raysim.functional.context import ClientContext, ServerContext
from raysim.functional.loss_and_gradient import Batch
from raysim.functional.optimizers import Optimizer, Tensors
from raysim.functional.parameters import ParameterLayout

__all__ = [
    "Batch",
    "Carry",
    "ClientContext",
    "FederatedAlgorithm",
    "Optimizer",
    "ParameterLayout",
    "ServerContext",
    "Tensor",
    "Tensors",
    "Upload",
    "masked_step",
    "nn",
    "torch",
]

Carry = dict[str, Any]


@dataclass(frozen=True)
class Upload:
    """How one named upload is averaged over the cohort.

    Attributes:
        weighting: ``samples`` weighs a client by its training samples, ``uniform`` gives each client the same weight.
        scale_bits: the mean is exact in fixed point with this many fractional bits: 40 holds values below 2^22 in
            steps of 1e-12. An upload of tiny values (squared gradients) takes more: 52 holds values below 2^10 in steps of
            2e-16. A client whose upload is not finite or too large for it is rejected.
    """

    weighting: Literal["samples", "uniform"] = "samples"
    scale_bits: int = 40


class FederatedAlgorithm(BaseModel):
    """FedAvg over the shared parameters, with personal ones where ``personal_patterns`` says so.

    Class attributes that a method may set:
        paper: a link, shown by ``raysim algorithms``.
        uploads: name -> how it is averaged, one entry for each name that ``client_final`` returns.
        batches_per_step: ``client_step`` gets this many times ``train.batch_size`` samples.
        pooled: no clients: one model trains on samples of all of them, as many as the cohort has (``Centralized``).
        reads_cohort_states: ``server_messages`` is called (the driver must then read the states of the whole cohort).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    paper: ClassVar[str] = ""
    uploads: ClassVar[dict[str, Upload]] = {"shared": Upload()}
    batches_per_step: ClassVar[int] = 1
    pooled: ClassVar[bool] = False
    reads_cohort_states: ClassVar[bool] = False

    name: str = ""
    """The name in the configuration: a key of ``algorithms.ALGORITHMS`` or ``module:Class``."""

    # What is shared, and the model itself.

    def personal_patterns(self) -> list[str]:
        """Patterns of the parameters that stay with their client; see ``raysim.functional.parameters.matches``."""
        return []

    def trainable_patterns(self) -> list[str]:
        """Patterns of the parameters that train. The others are frozen: not in ``theta``, never sent or kept."""
        return ["*"]

    def add_plugin(self, model: nn.Module) -> None:
        """Change the model in place before anything else sees it (add a plugin); called once per process."""

    # The server, in the driver. Tensors on the CPU.

    def server_init(self, shared: Tensor) -> Tensors:
        """The server's state before round 0 (momentum, control variates, ...) for a shared vector (S,)."""
        return {}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        """What is sent to every client of the round, by name; must have ``shared``."""
        return {"shared": shared}

    def server_messages(self, states: Tensors) -> Tensors:
        """With ``reads_cohort_states``: from the cohort's states, each (cohort, n), a message (cohort, m) per client.

        Rows are in client-id order. A client finds its row in ``state`` in ``client_init``, under the message's name.
        """
        raise NotImplementedError(f"{type(self).__name__} sets reads_cohort_states but has no server_messages")

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        """The next shared vector and server state from the exact mean of each upload (float64)."""
        return mean["shared"], server_state

    # A client. Tensors on the actor's device.

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        """The initial value of what a client keeps between rounds, by name; the same for all clients.

        ``theta`` (P,) are the model's initial parameters. Every entry is a float32 vector (n,), n may be 0.
        """
        return {"personal": layout.split(theta)[1]}

    def epochs(self, local_epochs: int) -> list[str]:
        """The phase of each local epoch. More than ``local_epochs`` entries cost more than FedAvg: document that."""
        return ["train"] * local_epochs

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        """The first carry, which each step passes to the next: a nested dict of tensors whose shapes never change."""
        theta = ctx.layout.join(ctx.broadcast["shared"], state["personal"])
        return {"theta": theta, "optimizer": ctx.optimizer.init(theta)}

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        """One local step. The metrics, scalars, are averaged over samples and logged as ``train/<name>``."""
        gradient, loss = ctx.gradient(carry["theta"], batch)
        theta, optimizer = ctx.optimizer.step(carry["theta"], gradient, carry["optimizer"])
        return {"theta": theta, "optimizer": optimizer}, {"loss": loss}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        """Uploads (those that ``uploads`` declares; ``shared`` is the client's trained shared part) and the new state."""
        shared, personal = ctx.layout.split(carry["theta"])
        return {"shared": shared}, {"personal": personal}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        """The parameters (P,) with which a client is evaluated.

        ``shared`` (S,) is the server's; for ``personalized/...``, of a client that has just trained, its own trained part.
        """
        return ctx.layout.join(shared, state["personal"])

    def adapt_steps(self) -> int:
        """How many training batches ``adapt`` is called on, once each, before a client is evaluated."""
        return 0

    def adapt_optimizer(self, ctx: ClientContext) -> Optimizer:
        """The optimiser of ``adapt``: plain SGD at ``train.optimizer.lr``, undecayed, whatever trains the clients."""
        return ctx.sgd()

    def adapt_init(self, theta: Tensor, ctx: ClientContext) -> Carry:
        """The carry that the steps of adaptation pass on, from parameters (P,); ``theta`` in the last one is evaluated."""
        return {"theta": theta, "optimizer": self.adapt_optimizer(ctx).init(theta)}

    def adapt(self, carry: Carry, batch: Batch, ctx: ClientContext) -> Carry:
        """One step of adaptation before evaluation, on a training batch; the result is evaluated, then discarded."""
        gradient, _ = ctx.gradient(carry["theta"], batch)
        theta, optimizer = self.adapt_optimizer(ctx).step(carry["theta"], gradient, carry["optimizer"])
        return {"theta": theta, "optimizer": optimizer}


def masked_step(trains: Tensor, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
    """A ``client_step`` that trains only the parameters that a boolean vector (P,) chooses.

    The others never move: neither by their gradient, nor by what the optimiser adds (decay, momentum).
    """
    gradient, loss = ctx.gradient(carry["theta"], batch)
    theta, optimizer = ctx.optimizer.step(carry["theta"], gradient * trains, carry["optimizer"])
    return {"theta": torch.where(trains, theta, carry["theta"]), "optimizer": optimizer}, {"loss": loss}
