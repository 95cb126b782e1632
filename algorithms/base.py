"""The contract between an algorithm and the engine: write one client, the engine runs thousands.

An algorithm is a subclass of ``FederatedAlgorithm`` that overrides what it does differently from FedAvg. Its
hyperparameters are annotated class attributes, the keys of the ``algorithm:`` block of a YAML file. Its functions are
pure: they take tensors, return new ones, and keep nothing on ``self``. They are written for one client; the engine calls
them directly, or for a whole client batch at once through ``torch.func.vmap``. So inside every function that gets a
``ClientContext``: no in-place change of an argument, no ``.item()``, no ``if`` on a tensor (``torch.where`` instead). What
may be branched on are Python values: hyperparameters, ``ctx.phase``, ``ctx.epoch``, ``ctx.round``.

A round, for a client with parameters ``theta = join(shared, personal)``::

    ctx.broadcast = broadcast(shared, server_state)           the server sends
    carry = client_init(state, ctx)                           the client starts,
    for phase in epochs(local_epochs), for each batch:
        carry, metrics = client_step(carry, batch, ctx)       trains, by ``gradient``,
    uploads, state = client_final(carry, ctx)                 sends uploads, keeps state
    shared, server_state = server_step(shared, server_state, mean of the uploads, ctx)

A server may know its clients one by one: it keeps a row for each (``server_row``), gets what each has sent
(``Upload("each")``) in ``server_step_each``, and sends each something else (``server_messages``), which the client finds
in its ``state``.

and its evaluation::

    theta = personalize(shared, state, ctx)                   its parameters,
    theta = adapt(...), adapt_steps() times                   maybe fine-tuned,
    scores = predict(theta, state, images, ctx)               classify its test images

Three choices are independent: which parameters exist, which of them are personal (keys of every method, in
``raysim/plugins/options.py``), and how they train, which is what a method's file says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raysim.functional.batch import Batch
from raysim.functional.context import ClientContext, ClientRows, ServerContext
from raysim.functional.optimizers import Optimizer, Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.plugins.options import ModelOptions

__all__ = [
    "About",
    "Batch",
    "Carry",
    "ClientContext",
    "ClientRows",
    "F",
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
    """What the server makes of one named upload: its mean over the cohort, or a row for each client.

    Attributes:
        weighting: ``samples`` weighs a client by its training samples, ``uniform`` gives each client the same weight.
            ``each``: no mean; the server gets the upload (n,) of each client, in ``ClientRows.uploads``.
        times: the name of another upload of the same weighting, one number (1,), at least 0, that the client computes, and by
            which it is weighted as well.
        mask: the same for every entry: another upload (n,), at least 0. The mean of an entry is over those clients that
            trained it, and NaN where nobody did; of ``shared`` such entries stay as they are.
        groups: the same for several means: another upload (k,), at least 0, with which the client counts in each of k means,
            such as 1 for its own cluster and 0 for the others. The mean is (k, n); NaN where nobody counts.
        known: the server knows it anyway (a mask that follows from the client's id): no bytes are counted for it.
        scale_bits: the mean is exact in fixed point with this many fractional bits: 40 holds values below 2^22 in
            steps of 1e-12. An upload of tiny values (squared gradients) takes more: 52 holds values below 2^10 in steps of
            2e-16. A client whose upload is not finite or too large for it is rejected.
    """

    weighting: Literal["samples", "uniform", "each"] = "samples"
    times: str | None = None
    scale_bits: int = 40
    mask: str | None = None
    groups: str | None = None
    known: bool = False

    @property
    def weighed_by(self) -> str | None:
        """The name of the upload that weighs it, whichever way."""
        return self.times or self.mask or self.groups


@dataclass(frozen=True)
class About:
    """A method in a line of ``raysim algorithms``.

    Attributes:
        family: the kind of method, by which that command filters.
        sent: what goes down and up; S are the shared parameters, D is the length of a representation.
        kept: what is a client's own.
        evaluated: with which parameters a client is evaluated; "as it is" is with the shared and its own ones.
        cost: the arithmetic of local training relative to FedAvg's, with E local epochs.
    """

    family: str
    sent: str
    kept: str
    evaluated: str
    cost: str


class FederatedAlgorithm(ModelOptions):
    """FedAvg over the shared parameters, with personal ones where ``personal`` says so.

    Class attributes that a method may set, beside those of ``ModelOptions``:
        about: what ``raysim algorithms`` says of it.
        paper: a link, shown there, too.
        uploads: name -> how it is averaged, one entry for each name that ``client_final`` returns.
        local_optimizers: which ``train.optimizer.name`` its arithmetic allows.
        trains_own_model: its clients train a whole model of their own, by ``ctx.optimizer.of_own_model()``.
        whole_phases: phases of ``epochs`` that are no training: stragglers go through all of them, and they are no steps.
        held_back_phases: phases that go through the samples that ``held_back`` keeps from all others.
        uses_features: it needs the model's representation and its one classifier (``ctx.features``, ``ctx.head``).
        second_derivatives: it differentiates a gradient of the model, which then goes through autograd, at half the speed.
        depends_on_rounds: what it does in a round depends on how many there are (``ctx.num_rounds``), so that a run can't get
            more of them later.
        batches_per_step: ``client_step`` gets this many times ``train.batch_size`` samples.
        prepares: before round 0 all clients train for the server alone (``server_prepare``): ``local_epochs``, in the phase
            ``prepare``.
        pooled: no clients: one model trains on samples of all of them, as many as the cohort has (``Centralized``).
        told_in_evaluation: ``server_messages`` are sent to clients that are evaluated, too.
        one_shared_model: the shared parameters are a model that every client could use, so that it is evaluated, too.
    """

    about: ClassVar[About] = About("own", "", "", "", "")
    paper: ClassVar[str] = ""
    uploads: ClassVar[dict[str, Upload]] = {"shared": Upload()}
    local_optimizers: ClassVar[tuple[str, ...]] = ("sgd", "adam", "adamw")
    trains_own_model: ClassVar[bool] = False
    whole_phases: ClassVar[tuple[str, ...]] = ()
    held_back_phases: ClassVar[tuple[str, ...]] = ()
    uses_features: ClassVar[bool] = False
    second_derivatives: ClassVar[bool] = False
    depends_on_rounds: ClassVar[bool] = False
    batches_per_step: ClassVar[int] = 1
    prepares: ClassVar[bool] = False
    pooled: ClassVar[bool] = False
    told_in_evaluation: ClassVar[bool] = True
    one_shared_model: ClassVar[bool] = True

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        for name, upload in cls.uploads.items():
            given = {key: value for key in ("times", "mask", "groups") if (value := getattr(upload, key)) is not None}
            if len(given) > 1 or (given and upload.weighting == "each"):
                raise TypeError(f"{cls.__name__}.uploads[{name!r}]: {given} can't all be used for one mean")
            for key, other in given.items():
                weight = cls.uploads.get(other)
                if weight is None or weight.weighting != upload.weighting or weight.weighed_by:
                    raise TypeError(
                        f"{cls.__name__}.uploads[{name!r}]: {key}={other!r} must be an upload of equal weighting"
                    )

    @classmethod
    def has_own(cls, *functions: str) -> list[str]:
        """Those of the named functions of this class that a method overrides."""
        return [name for name in functions if getattr(cls, name) is not getattr(FederatedAlgorithm, name)]

    # The server, in the driver. Tensors on the CPU.

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        """The server's state before round 0 (momentum, control variates, ...), tensors by name, for a shared vector (S,)."""
        return {}

    def needs_drawn_parameters(self) -> str:
        """Why pretrained parameters would be of no use, and what to do; empty if they are."""
        return ""

    def server_row(self, ctx: ServerContext) -> Tensors:
        """What the server keeps of a client before it knows anything of it: float32 vectors (n,) by name.

        ``ctx.generator`` is seeded for the client. Rows are on disk, like the states of clients, and only those that a
        function asks for are read.
        """
        return {}

    def server_prepare(self, server_state: Tensors, mean: Tensors) -> Tensors:
        """With ``prepares``: the server's state before round 0, from the mean (n,) float64 of each upload of all clients."""
        raise NotImplementedError(f"{type(self).__name__} sets prepares but has no server_prepare")

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        """What is sent to every client of the round, tensors by name; must have ``shared`` (S,)."""
        return {"shared": shared}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        """What is sent to each of K clients beside the broadcast, rows (K, m) by name.

        A client finds its row in ``state``, (m,), under the message's name, in training and (``told_in_evaluation``) in
        evaluation. K are the clients of a client batch: a row must depend on nothing but its client, the server's state, and
        rows that ``ctx.rows`` reads.
        """
        return {}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        """The next shared vector (S,) and server state from the exact mean (n,) float64 of each upload."""
        return mean.get("shared", shared), server_state

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        """``server_step`` of a server that knows its clients one by one: also the next row (K, n) of each that reported."""
        return *self.server_step(shared, server_state, mean, ctx), clients.rows

    # A client. Tensors on the actor's device.

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        """The initial value of what a client keeps between rounds, by name; the same for all clients.

        ``theta`` (P,) are the model's initial parameters. Every entry is a float32 vector (n,), n may be 0.
        """
        return {"personal": layout.split(theta)[1]}

    def epochs(self, local_epochs: int) -> list[str]:
        """The phase of each local epoch. More than ``local_epochs`` entries cost more than FedAvg: document that."""
        return ["train"] * local_epochs

    def held_back(self) -> float:
        """The share of a client's training samples, its last ones, that only ``held_back_phases`` go through."""
        return 0.0

    def takes_part(self, state: Tensors, phases: list[str], ctx: ClientContext) -> Tensor:
        """Which of the ``phases`` of local training a client goes through: a boolean vector (len(phases),).

        Also asked about ``prepare`` and about adaptation, whose steps all have the phase ``adapt``. What no client of a batch
        takes part in costs nothing.
        """
        return torch.ones(len(phases), dtype=torch.bool)

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        """The first carry, which each step passes to the next: a nested dict of tensors whose shapes never change."""
        theta = ctx.layout.join(ctx.broadcast["shared"], state["personal"])
        return {"theta": theta, "optimizer": ctx.optimizer.init(theta)}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        """The loss (B,) of each sample at parameters (P,), and any tree of tensors that the step needs as well.

        The engine takes the mean over samples that are not padded. A client's tensors are read from the arguments only.
        """
        return F.cross_entropy(ctx.logits(theta, batch.images), batch.labels, reduction="none"), ()

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        """The gradient (P,) at ``carry["theta"]`` with which ``client_step`` goes on, and the loss, a scalar."""
        if not self.has_own("losses"):
            return ctx.gradient(carry["theta"], batch)
        return ctx.gradient_of(self.losses, carry["theta"], batch, carry)[:2]

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        """One local step. The metrics, scalars, are averaged over samples and logged as ``train/<name>``."""
        gradient, loss = self.gradient(carry, batch, ctx)
        theta, optimizer = ctx.optimizer.step(carry["theta"], gradient, carry["optimizer"])
        return {**carry, "theta": theta, "optimizer": optimizer}, {"loss": loss}

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """How many numbers a client is sent and sends, (2,) float64, of a method that counts for itself.

        Without it, that is all of broadcast, messages and uploads. ``state`` is what it had when it began to train, messages
        included.
        """
        raise NotImplementedError

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        """Uploads and the new state, each by name and (n,).

        The uploads are those that ``uploads`` declares; ``shared`` (S,) is the client's trained shared part.
        """
        shared, personal = ctx.layout.split(carry["theta"])
        return {"shared": shared}, {"personal": personal}

    # Its evaluation.

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        """The parameters (P,) with which a client is evaluated.

        ``shared`` (S,) is the server's; for ``personalized/...``, of a client that has just trained (``ctx.as_trained``), its
        own trained part. ``state`` has the server's messages to it, too: then those with which it trained.
        """
        return ctx.layout.join(shared, state["personal"])

    def adapt_steps(self) -> int:
        """How many training batches ``adapt`` is called on, once each, before a client is evaluated."""
        return 0

    def adapt_optimizer(self, ctx: ClientContext) -> Optimizer:
        """The optimiser of ``adapt``: plain SGD at ``train.optimizer.lr``, undecayed, whatever trains the clients."""
        return ctx.sgd()

    def adapt_init(self, theta: Tensor, state: Tensors, ctx: ClientContext) -> Carry:
        """The carry that the steps of adaptation pass on, from parameters (P,); ``theta`` in the last one is evaluated."""
        return {"theta": theta, "optimizer": self.adapt_optimizer(ctx).init(theta)}

    def adapt(self, carry: Carry, batch: Batch, ctx: ClientContext) -> Carry:
        """One step of adaptation before evaluation, on a training batch; the result is evaluated, then discarded."""
        gradient, _ = ctx.gradient(carry["theta"], batch)
        theta, optimizer = self.adapt_optimizer(ctx).step(carry["theta"], gradient, carry["optimizer"])
        return {**carry, "theta": theta, "optimizer": optimizer}

    def remember(self, theta: Tensor, batch: Batch, ctx: ClientContext) -> Tensors:
        """What ``predict`` needs of each training sample, by name, each (B, ...): of all of them, computed before it.

        ``predict`` finds them in ``state``, (n, ...), beside a mask (n,) that is 0 where padded, ``remembered``.
        """
        return {}

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        """The scores (B, classes) of images: their softmax are the probabilities. Default: the model's logits."""
        return ctx.logits(theta, images)


def masked_step(trains: Tensor, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
    """A ``client_step`` that trains only the parameters that a boolean vector (P,) chooses.

    The others never move: neither by their gradient, nor by what the optimiser adds (decay, momentum).
    """
    gradient, loss = ctx.gradient(carry["theta"], batch)
    theta, optimizer = ctx.optimizer.step(carry["theta"], gradient * trains, carry["optimizer"])
    return {**carry, "theta": torch.where(trains, theta, carry["theta"]), "optimizer": optimizer}, {"loss": loss}
