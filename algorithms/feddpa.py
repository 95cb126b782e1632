"""FedDPA: Dual-Personalizing Adapter for Federated Foundation Models (its variant FedDPA-T).

Y. Yang, G. Long, T. Shen, J. Jiang, M. Blumenstein. NeurIPS 2024. https://arxiv.org/abs/2403.19211

    model:     h = W x + (1 - a) B A x + a B_l A_l x  in every adapted layer; a is train_weight in the local phase, else 0
    client i:  (A_l, B_l) by local epochs of SGD on its own loss, beside A and B as they arrived (from its second round on),
               then (A, B) by local epochs of SGD, alone
    server:    A, B = the means of A_i, B_i, weighted by samples
    evaluation:  a(x) = lamda * mean over training samples x_s of  cos(e(x), e(x_s)),  e the representation with a = 1

The authors compare x with 5 training samples drawn anew for each x; here with all of the client's, which is what that
estimates. Theirs is a language model without a head: here it is part of what is shared and trains in the global phase, or
with ``personal: [local, head]`` in the local one. As theirs, a client begins with the local phase in its second round (at
once with a head of its own); before, a is 0.

Down and up: A, B and the head. Kept by a client: A_l, B_l. Twice the cost of FedIT.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    F,
    ParameterLayout,
    Tensor,
    Tensors,
    torch,
)
from raysim.algorithms.lora import FederatedLoRA
from raysim.plugins.attach_points import attention_layers
from raysim.plugins.lora import LoRA
from raysim.search_space import Range, Tuned


class FedDPA(FederatedLoRA):
    """A shared and a local LoRA, mixed for each test image by how much it is like the client's training images."""

    paper = "https://arxiv.org/abs/2403.19211"
    about = About(
        "lora",
        sent="LoRA and head",
        kept="a LoRA of its own",
        evaluated="both, mixed for each image",
        cost="2, without the gradients of the backbone",
    )
    uses_features = True
    needs_body = True
    one_shared_model = False
    modules = ("local",)
    whole_phases = ("local",)

    personal: list[str] = ["local"]
    """Patterns of the personal parameters, which train in the local phase."""
    lamda: Annotated[float, Tuned([0.3, 0.5, 0.7, 1.0], "around the authors' 0.5")] = Field(0.5, gt=0, le=1)
    """The largest share of the local LoRA in a prediction; 0.5 in the authors' code."""
    train_weight: Annotated[float, Tuned(Range(0.3, 0.7), "the authors' ablation")] = Field(0.5, gt=0, le=1)
    """The share of the local LoRA while it trains; 0.5 in the authors' code."""

    def add_modules(self, model: nn.Module) -> None:
        assert self.mid_dim is not None
        assert self.scale is not None
        for layer in attention_layers(model, self.plugin_depth):
            qkv: Any = layer.qkv
            qkv.local = LoRA(qkv.in_features, self.mid_dim, self.scale)
            qkv.register_forward_hook(_add_local)

    def epochs(self, local_epochs: int) -> list[str]:
        return ["local"] * local_epochs + ["global"] * local_epochs

    def takes_part(self, state: Tensors, phases: list[str], ctx: ClientContext) -> Tensor:
        again = state["rounds"].squeeze() > 0
        personal = ctx.layout.names[ctx.layout.num_shared_tensors :]
        if any("local" not in name.split(".") for name in personal):  # a head of its own begins at once
            again = again | True
        return torch.stack([again if phase == "local" else again | True for phase in phases])

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        return {**super().client_state(theta, layout), "rounds": theta.new_zeros(1)}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        carry = super().client_init(state, ctx)
        optimizers = {"local": carry["optimizer"], "global": carry["optimizer"]}
        return {"theta": carry["theta"], "rounds": state["rounds"], **optimizers}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        weight = self.train_weight if ctx.phase == "local" else 0.0
        logits = ctx.logits(_mixed(theta, weight, ctx), batch.images)
        return F.cross_entropy(logits, batch.labels, reduction="none"), ()

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        theta = carry["theta"]
        gradient, loss, _ = ctx.gradient_of(self.losses, theta, batch, ())
        trains = ctx.is_personal == (ctx.phase == "local")
        new, optimizer = ctx.optimizer.step(theta, gradient * trains, carry[ctx.phase])
        metrics = {"loss" if ctx.phase == "global" else "personal_loss": loss}
        return {**carry, "theta": torch.where(trains, new, theta), ctx.phase: optimizer}, metrics

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        return uploads, {**state, "rounds": carry["rounds"] + 1}

    def remember(self, theta: Tensor, batch: Batch, ctx: ClientContext) -> Tensors:
        z = ctx.features(_mixed(theta, 1.0, ctx), batch.images)
        return {"directions": F.normalize(z, dim=1)}

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        mean = state["remembered"] @ state["directions"] / state["remembered"].sum()
        z = ctx.features(_mixed(theta, 1.0, ctx), images)
        begun = (state["rounds"] > 1).float()
        weights = self.lamda * begun * (F.normalize(z, dim=1) @ mean)

        def of_one(image: Tensor, weight: Tensor) -> Tensor:
            return ctx.logits(_mixed(theta, weight, ctx), image[None]).squeeze(0)

        return torch.func.vmap(of_one)(images, weights)


def _mixed(theta: Tensor, weight: Tensor | float, ctx: ClientContext) -> Tensor:
    """Parameters (P,) at which the model has this share, a scalar, of the local LoRA and the rest of the shared one."""
    shared = torch.where(ctx.mask("lora.up"), 1 - weight, 1.0)
    return theta * torch.where(ctx.mask("local.up"), weight, shared)


def _add_local(qkv: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + qkv.local(inputs[0])
