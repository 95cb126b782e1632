"""HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients.

E. Diao, J. Ding, V. Tarokh. ICLR 2021. https://arxiv.org/abs/2010.01264

    client i:  the first ceil(r_i n) dimensions of every axis of the model w, after local epochs of SGD on its own loss
    server:    each entry of w = its mean over the clients of the round that have it, with equal weights; else as it was

On a ViT the axes are the residual stream, the dimensions of each head (no head is dropped, as in the authors'
transformer) and the hidden layer of the MLPs. With ``scaler`` what a layer gives is divided by r_i in training, as in the
authors' code. ``mask_classes`` is their masked loss: the scores of classes that a client has not are 0 while it trains,
and it has no part in their rows of the head.

Clients are evaluated with the whole model, as in the authors' code, or with ``evaluated: width`` with their own part of
it. ``personalized/...`` of clients that have just trained is their own part in both cases. A client's part is computed as
the whole model with zeros: what a real client would save in time is not simulated; what it saves in bytes is counted.
Down and up: the client's entries. Kept by a client: nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import field_validator
from torch import nn

from raysim.algorithms import width
from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    ClientRows,
    F,
    FederatedAlgorithm,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.search_space import Tuned


class HeteroFL(FederatedAlgorithm):
    """Clients train the first part of the model's width that their device can hold."""

    paper = "https://arxiv.org/abs/2010.01264"
    about = About(
        "width",
        sent="the entries of its width, about its square of S",
        kept="nothing",
        evaluated="as it is",
        cost="1 here; a real client saves",
    )
    uploads = {"shared": Upload("uniform", mask="trains"), "trains": Upload("uniform", known=True, scale_bits=60)}
    whole_model_kept = "its clients train parts of one shared model"
    needs_body = True

    widths: Annotated[list[float], Tuned(None, "the clients' devices")] = [1.0, 0.5, 0.25]
    """Widths of the clients, as shares of the model's: of client i the (i mod their number)-th."""
    assignment: Literal["fixed", "dynamic"] = "fixed"
    """``dynamic``: a client has one of them by chance in each round."""
    scaler: bool = True
    """Divide what layers give by the width while a client trains."""
    mask_classes: bool = False
    """Leave out classes that a client has not, from its loss and from its part of the head."""
    evaluated: Literal["full", "width"] = "full"
    """With which part of the shared model clients are evaluated."""

    @field_validator("widths")
    @classmethod
    def _are_shares(cls, widths: list[float]) -> list[float]:
        if not widths or not all(0 < share <= 1 for share in widths):
            raise ValueError(f"must be shares of the width, above 0 and at most 1, not {widths}")
        return widths

    def add_modules(self, model: nn.Module) -> None:
        width.num_heads(model)
        width.replace_norms(model)

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        width.check(ctx.layout)
        return {}

    def _offset(self, round: int) -> int:
        """Where the axes begin in a round."""
        return 0

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        which = clients.ids % len(self.widths)
        if self.assignment == "dynamic":
            drawn = torch.randint(len(self.widths), (ctx.num_clients,), generator=ctx.generator)
            which = drawn[clients.ids % ctx.num_clients]
        return {"width": torch.tensor(self.widths)[which][:, None]}

    def _mask(self, share: Tensor, ctx: ClientContext) -> Tensor:
        """A boolean vector (S,), true for the client's part."""
        heads = width.num_heads(ctx.model.model)
        own = width.mask(ctx.layout, heads, share, self._offset(ctx.round), share.device)
        if not self.mask_classes or ctx.phase in ("evaluate", "adapt"):
            return own
        return own & width.of_classes(ctx.layout, ctx.client.class_counts > 0)

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        own = self._mask(state["width"], ctx)
        theta = torch.where(own, ctx.broadcast["shared"], 0.0)  # all of it: nothing is personal
        return {"theta": theta, "own": own, "width": state["width"], "optimizer": ctx.optimizer.init(theta)}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        logits = ctx.logits(self._scaled(theta, carry["width"], ctx, self.scaler), batch.images)
        if self.mask_classes:
            logits = torch.where(ctx.client.class_counts > 0, logits, 0.0)
        return F.cross_entropy(logits, batch.labels, reduction="none"), ()

    def _scaled(self, theta: Tensor, share: Tensor, ctx: ClientContext, scaler: bool) -> Tensor:
        """Parameters (P,) with which the whole model computes what a model of this width would."""
        heads = width.num_heads(ctx.model.model)
        factor = width.head_factor(ctx.layout, heads, share, theta.device)
        if scaler:
            factor = torch.where(width.is_scaled(ctx.layout, theta.device), factor / share, factor)
        return theta * factor

    def gradient(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Tensor, Tensor]:
        more = {"width": carry["width"]}
        gradient, loss, _ = ctx.gradient_of(self.losses, carry["theta"], batch, more)
        return torch.where(carry["own"], gradient, 0.0), loss

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        return {**uploads, "trains": carry["own"].float()}, state

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        if self.evaluated == "full" and not ctx.as_trained:
            return shared
        own = torch.where(self._mask(state["width"], ctx), shared, 0.0)
        return self._scaled(own, state["width"], ctx, scaler=False)

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """The entries of its part, both ways."""
        return uploads["trains"].double().sum().expand(2)
