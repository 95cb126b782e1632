"""FedKD: Communication-efficient federated learning via knowledge distillation.

C. Wu, F. Wu, L. Lyu, Y. Huang, X. Xie. Nature Communications 13, 2022. https://arxiv.org/abs/2108.13323

    client i:  mentor m_i, shared mentee w and a linear map A_i, by local epochs of SGD on  CE(m) + CE(w)
                   + (KL(w | m) + KL(m | w) + 2 mean((z_m - A z_w)^2)) / (CE(m) + CE(w)),  gradients through all of it
    up:        w_i, each matrix cut to the fewest singular values with more than a share T of the sum of their squares
    server:    w = mean of w_i with equal weights, cut again
    evaluation:  m_i

z is the representation; T rises from ``energy_start`` to ``energy_end`` with the rounds. With ``compressed: update`` w_i
- w is cut and sent, as in the authors' code, with ``parameters`` w_i itself, as in PFLlib. Kernels of patches are cut
over their last two axes, with one rank for all, as in PFLlib. Where no smaller rank has the share, all is kept (the
authors' code sends zeros then). Mentor and mentee are the same architecture, as in PFLlib (authors: the mentee has a
third of the layers), and what distils is the representation (authors: every hidden state and attention). PFLlib clips the
gradient of each of the three to norm 10, which here is ``train.optimizer.clip_norm``.

Down and up: w, by its singular vectors (``communication/...`` counts those). Kept by a client: m_i and A_i. Twice the
cost of FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from raysim.algorithms.base import (
    About,
    Batch,
    Carry,
    ClientContext,
    F,
    FederatedAlgorithm,
    ParameterLayout,
    ServerContext,
    Tensor,
    Tensors,
    Upload,
    torch,
)
from raysim.errors import ConfigError
from raysim.search_space import Tuned


class FedKD(FederatedAlgorithm):
    """A client's own model and a shared one distil each other, and the shared one is sent by its largest singular values."""

    paper = "https://arxiv.org/abs/2108.13323"
    about = About(
        "distillation",
        sent="S by its largest singular values",
        kept="a model of its own, a linear map (D by D)",
        evaluated="its own model",
        cost="2, and decompositions",
    )
    uploads = {"shared": Upload("uniform"), "numbers": Upload("uniform", known=True)}
    whole_model_kept = "its clients keep a whole model of their own"
    uses_features = True
    needs_body = True
    trains_own_model = True
    depends_on_rounds = True

    energy_start: Annotated[float, Tuned(None, "it decides how much is sent")] = Field(0.95, gt=0, le=1)
    """T in the first round; 0.95 in the authors' code. 1 cuts nothing."""
    energy_end: Annotated[float, Tuned(None, "it decides how much is sent")] = Field(0.98, gt=0, le=1)
    """To what T rises; 0.98 in the authors' code. Round r of R has r / R of the way, as in PFLlib (there (r + 1) / R)."""
    compressed: Literal["update", "parameters"] = "update"
    """What is cut: the change of the shared model, as in the authors' code, or its parameters, as in PFLlib."""

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        return {"sent": torch.full((1,), float(len(shared)))}

    def server_step(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, ctx: ServerContext
    ) -> tuple[Tensor, Tensors]:
        base = shared if self.compressed == "update" else torch.zeros_like(shared)
        cut, count = self._cut(mean["shared"].float() - base, ctx.layout, self._energy(ctx.round, ctx.num_rounds))
        return base + cut, {"sent": count[None].float()}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, "sent": server_state["sent"]}

    def _energy(self, round: int, num_rounds: int) -> float:
        return self.energy_start + round / num_rounds * (self.energy_end - self.energy_start)

    def _cut(self, vector: Tensor, layout: ParameterLayout, energy: float) -> tuple[Tensor, Tensor]:
        """A vector (S,) with its matrices cut to the fewest singular values, and how many numbers that takes."""
        if energy == 1:
            return vector, vector.new_tensor(float(vector.numel()))
        pieces, count = [], vector.new_zeros(())
        shapes = layout.shapes[: layout.num_shared_tensors]
        for piece, shape in zip(vector.split(layout.sizes[: len(shapes)]), shapes, strict=True):
            if len(shape) < 2 or shape[0] == 1:
                pieces.append(piece)
                count = count + piece.numel()
                continue
            finite = piece.isfinite().all()  # else it can't be decomposed, and the client is rejected
            u, s, v = torch.linalg.svd(torch.where(finite, piece, 0.0).view(shape), full_matrices=False)
            power = s.square().flatten(0, -2).sum(dim=0) if s.dim() > 1 else s.square()
            before = power.cumsum(0) - power
            kept = before <= energy * power.sum()  # until those before have more than the share
            pieces.append(torch.where(finite, ((u * (s * kept)[..., None, :]) @ v).flatten(), torch.nan))
            each = s.numel() // s.shape[-1] * (shape[-2] + shape[-1] + 1)
            count = count + (kept.sum() * each).clamp(max=piece.numel())
        return torch.cat(pieces), count

    def client_state(self, theta: Tensor, layout: ParameterLayout) -> Tensors:
        if layout.statistics:
            raise ConfigError(
                "algorithm.name: fedkd trains two models in one step, which can't be done with BatchNorm layers"
            )
        _, dim = layout.head_shape
        return {"own": theta.clone(), "map": torch.eye(dim).flatten(), "next": theta.new_zeros(1)}

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        three = {"own": state["own"], "shared": ctx.broadcast["shared"].clone(), "map": state["map"]}
        return {**three, "optimizers": {name: ctx.optimizer.init(vector) for name, vector in three.items()}}

    def losses(self, theta: Tensor, batch: Batch, carry: Any, ctx: ClientContext) -> tuple[Tensor, Any]:
        """The joint loss of the three, at all of their parameters (2 P + D^2,)."""
        _, dim = ctx.layout.head_shape
        size = ctx.layout.num_parameters
        own, shared, to_own = theta.split([size, size, dim * dim])
        z_own, z_shared = ctx.features(own, batch.images), ctx.features(shared, batch.images)
        scores = ctx.head(own, z_own), ctx.head(shared, z_shared)
        own_loss, shared_loss = (F.cross_entropy(s, batch.labels, reduction="none") for s in scores)
        p, q = (s.log_softmax(dim=1) for s in scores)
        distance = (z_own - z_shared @ to_own.view(dim, dim).T).square().mean(dim=1)
        distilled = batch.mean(((p - q) * (p.exp() - q.exp())).sum(dim=1) + 2 * distance)
        total = batch.mean(own_loss + shared_loss)
        return own_loss + shared_loss + distilled / total, (own_loss, shared_loss)

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        names = ("own", "shared", "map")
        three = torch.cat([carry[name] for name in names])
        gradient, _, (own_loss, loss) = ctx.gradient_of(self.losses, three, batch, ())
        new: Carry = {"optimizers": {}}
        for name, slope in zip(names, gradient.split([carry[name].shape[-1] for name in names]), strict=True):
            optimizer = ctx.optimizer if name == "shared" else ctx.optimizer.of_own_model()
            new[name], new["optimizers"][name] = optimizer.step(carry[name], slope, carry["optimizers"][name])
        return new, {"loss": batch.mean(loss), "personal_loss": batch.mean(own_loss)}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        before = ctx.broadcast["shared"]
        base = before if self.compressed == "update" else torch.zeros_like(before)
        cut, count = self._cut(carry["shared"] - base, ctx.layout, self._energy(ctx.round, ctx.num_rounds))
        after = torch.full_like(carry["map"][:1], ctx.round + 1)
        return {"shared": base + cut, "numbers": count[None]}, {"own": carry["own"], "map": carry["map"], "next": after}

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return state["own"]

    def traffic(self, state: Tensors, uploads: Tensors, ctx: ClientContext) -> Tensor:
        """Singular values and vectors that are kept; a matrix of full rank is sent as it is.

        An update is of use to a client that has what it changes, since it took part in the round before; others are sent all.
        """
        sent, everything = ctx.broadcast["sent"], torch.full_like(ctx.broadcast["sent"], ctx.layout.num_shared)
        if self.compressed == "update":
            sent = torch.where(state["next"] == ctx.round, sent, everything)
        return torch.cat([sent, uploads["numbers"]]).double()
