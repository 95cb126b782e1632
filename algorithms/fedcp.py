"""FedCP: Separating Feature Information for Personalized Federated Learning via Conditional Policy.

J. Zhang, Y. Hua, H. Wang, T. Song, Z. Xue, R. Ma, H. Guan. KDD 2023. https://arxiv.org/abs/2307.01217

    client i, on representation z:  (a, 1 - a) = softmax over the two halves of gate(z c_i / |c_i|), with Gumbel noise
        CE(head_i(a z) + head_g((1 - a) z), y) + lamda MMD(z, z_w),  with head_g and the received body's z_w constant
    at the end of the round:  c_i = sum of the rows of head_i over classes,  head_g = (head_g + head_i) / 2
    server:                   body, gate and head_g are means weighted by samples
    evaluation:               head_i(a z) + head_g((1 - a) z), without noise

Down and up: body, gate and head_g. Kept by a client: its head and c_i (the new one, and that with which it trained),
which starts as that of the initial head (in the authors' code at random). MMD as in ``raysim/functional/distances.py``.
One more forward pass per batch, gate and
distances: 1.6 times the cost of FedAvg. The authors' code draws noise in evaluation, too.
"""

from __future__ import annotations

import copy
from typing import Annotated, Any

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    F,
    FederatedAlgorithm,
    ParameterLayout,
    Tensor,
    Tensors,
    nn,
    torch,
)
from raysim.functional.distances import mmd
from raysim.search_space import Range, Tuned


class FedCP(FederatedAlgorithm):
    """A gate per sample divides features between a personal and a global head."""

    paper = "https://arxiv.org/abs/2307.01217"
    about = About(
        "partial",
        sent="body, global head, gate",
        kept="the head, two contexts (D each)",
        evaluated="both heads, gated",
        cost="1.3, measured 1.6",
    )
    uses_features = True
    needs_body = True
    modules = ("head_g", "gate")

    personal: list[str] = ["head"]
    """Patterns of the personal parameters."""
    lamda: Annotated[float, Tuned(Range(0.5, 50.0, log=True), "a factor of 10 around the authors' 5")] = Field(
        5.0, gt=0
    )
    """The paper's lambda, the weight of the distance between new and received representations; 5 in the authors' example."""
    gumbel: bool = True
    """Gumbel noise in the gate while training; false: a plain softmax, which can be reproduced elsewhere."""

    def add_modules(self, model: nn.Module) -> None:
        assert callable(model.get_classifier)
        head = model.get_classifier()
        dim = head.in_features
        model.head_g = copy.deepcopy(head)
        model.gate = nn.Sequential(nn.Linear(dim, 2 * dim), nn.LayerNorm(2 * dim), nn.ReLU())

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        context = layout.piece(theta, f"{layout.heads[0]}.weight").sum(dim=0)
        return {**super().client_state(theta, layout), "context": context, "used": context}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        received = {"personal": state["personal"], "context": state["context"]}
        return {**super().client_init(state, ctx), "received": received}

    def _logits(self, theta: Tensor, of_head_g: Tensor, z: Tensor, context: Tensor, ctx: ClientContext) -> Tensor:
        gate = ctx.module(theta, "gate", z * F.normalize(context, dim=0)).view(len(z), 2, -1)
        noisy = self.gumbel and ctx.phase == "train"
        share = F.gumbel_softmax(gate, dim=1) if noisy else gate.softmax(dim=1)
        return ctx.head(theta, share[:, 0] * z) + ctx.module(of_head_g, "head_g", share[:, 1] * z)

    def losses(self, theta: Tensor, batch: Batch, received: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        start = ctx.layout.join(ctx.broadcast["shared"], received["personal"])
        logits = self._logits(theta, start, z, received["context"], ctx)
        distance = mmd(z, ctx.features(start, batch.images), batch)
        return F.cross_entropy(logits, batch.labels, reduction="none") + self.lamda * distance, ()

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        theta = carry["theta"]
        gradient, loss, _ = ctx.gradient_of(self.losses, theta, batch, carry["received"])
        new, optimizer = ctx.optimizer.step(theta, gradient, carry["optimizer"])
        new = torch.where(ctx.mask("head_g"), theta, new)  # nor does the optimiser's decay move it
        return {**carry, "theta": new, "optimizer": optimizer}, {"loss": loss}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        tensors = ctx.layout.unflatten(carry["theta"])
        head = ctx.layout.heads[0]
        context = tensors[f"{head}.weight"].sum(dim=0)
        for kind in ("weight", "bias"):
            tensors[f"head_g.{kind}"] = (tensors[f"head_g.{kind}"] + tensors[f"{head}.{kind}"]) / 2
        shared, personal = ctx.layout.split(ctx.layout.flatten(tensors))
        return {"shared": shared}, {"personal": personal, "context": context, "used": carry["received"]["context"]}

    def predict(self, theta: Tensor, state: Tensors, images: Tensor, ctx: ClientContext) -> Tensor:
        z = ctx.features(theta, images)
        if not ctx.as_trained:
            return self._logits(theta, theta, z, state["context"], ctx)
        # head_g and context are those that it trained with.
        start = ctx.layout.join(ctx.broadcast["shared"], state["personal"])
        return self._logits(theta, start, z, state["used"], ctx)
