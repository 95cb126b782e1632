"""FedPAC: Personalized Federated Learning with Feature Alignment and Classifier Collaboration.

J. Xu, X. Tong, S.-L. Huang. ICLR 2023. https://arxiv.org/abs/2306.11867

    client i, on arrival of the body w:  mu_ik, p_ik = mean representation and share of class k,  H_i = (p_ik mu_ik)_k,
        V_i = (sum_k p_ik E_k|z|^2 - sum_k p_ik^2 |mu_ik|^2) / n_i
    then:      an epoch of SGD (head_lr) of its head h_i, local epochs of SGD of the body on  CE + lamda mean((z - C_y)^2),
               and c_ik = mean representation of class k under the trained body
    server:    w = sum_i n_i w_i / sum_i n_i,  C_k = sum_i n_ik c_ik / sum_i n_ik
               h_i = sum_j a_j h_j,  a minimises  a^T (diag(V) + [<H_i - H_j, H_i - H_k>]_jk) a  over sum a = 1, a >= 0
    evaluation:  (w, h_i)

z is the representation. Weights a_j below 0.001 are cut and the rest rescaled, as in the authors' code. There is no pull
in the first round, nor to a class that nobody had in the round before (there: to the client's own mean). A client that is
absent keeps its head. The authors' base momentum 0.5 is ``train.optimizer``'s matter; PFLlib trains the head at the rate
of the body.

Down: the body, prototypes (D per class), h_i; up: the body, h_i, prototypes, n_ik, H_i (D per class) and V_i. Kept by the
server for each client: its head. (E + 1.7) / E times the cost of FedAvg.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field

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
from raysim.search_space import Range, Tuned

LEAST_WEIGHT = 1e-3


class FedPAC(FederatedAlgorithm):
    """Prototypes align the shared body, and the server combines each client's head with those of similar clients."""

    paper = "https://arxiv.org/abs/2306.11867"
    about = About(
        "partial",
        sent="body, head, prototypes (D per class); up also class means, counts and a number",
        kept="nothing (its head is kept by the server)",
        evaluated="with its combined head",
        cost="(E + 1.7) / E",
    )
    uploads = {
        "shared": Upload(),
        "prototypes": Upload("uniform"),
        "class_counts": Upload("uniform"),
        "head": Upload("each"),
        "statistics": Upload("each"),
    }
    whole_phases = ("statistics", "head", "prototypes")
    uses_features = True
    needs_body = True

    personal: list[str] = ["head"]
    """Patterns of the personal parameters, which train first and are combined by the server."""
    lamda: Annotated[float, Tuned(Range(0.1, 10.0, log=True), "a factor of 10 around the authors' 1")] = Field(
        1.0, ge=0
    )
    """The paper's lambda, the weight of the distance to the prototypes; 1 in the authors' code."""
    head_lr: Annotated[float, Tuned(Range(0.01, 1.0, log=True), "a factor of 10 around the authors' 0.1")] = Field(
        0.1, gt=0
    )
    """Learning rate of the head's epoch, plain SGD; 0.1 in the authors' code."""

    # The server.

    def server_init(self, shared: Tensor, ctx: ServerContext) -> Tensors:
        classes, dim = ctx.layout.head_shape
        return {"prototypes": torch.zeros(classes, dim), "known": torch.zeros(classes)}

    def broadcast(self, shared: Tensor, server_state: Tensors) -> Tensors:
        return {"shared": shared, **server_state}

    def server_row(self, ctx: ServerContext) -> Tensors:
        return {"head": ctx.layout.split(ctx.initial)[1]}

    def server_messages(
        self, shared: Tensor, server_state: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> Tensors:
        return clients.rows

    def server_step_each(
        self, shared: Tensor, server_state: Tensors, mean: Tensors, clients: ClientRows, ctx: ServerContext
    ) -> tuple[Tensor, Tensors, Tensors]:
        counts = mean["class_counts"]
        known = counts > 0
        prototypes = mean["prototypes"].view(len(counts), -1) / torch.where(known, counts, 1.0)[:, None]
        weights = combination_weights(clients.uploads["statistics"].double())
        heads = (weights @ clients.uploads["head"].double()).float()
        return mean["shared"], {"prototypes": prototypes.float(), "known": known.float()}, {"head": heads}

    # A client.

    def epochs(self, local_epochs: int) -> list[str]:
        return ["statistics", "head", *["train"] * local_epochs, "prototypes"]

    def client_init(self, state: Tensors, ctx: ClientContext) -> Carry:
        prototypes = torch.zeros_like(ctx.broadcast["prototypes"])
        carry = super().client_init({**state, "personal": state["head"]}, ctx)
        squares = torch.zeros_like(ctx.client.class_counts)
        return {**carry, "before": prototypes, "squares": squares, "after": prototypes}

    def losses(self, theta: Tensor, batch: Batch, carry: Carry, ctx: ClientContext) -> tuple[Tensor, Any]:
        z = ctx.features(theta, batch.images)
        loss = F.cross_entropy(ctx.head(theta, z), batch.labels, reduction="none")
        distance = ((z - ctx.broadcast["prototypes"][batch.labels]) ** 2).mean(dim=1)
        return loss + self.lamda * ctx.broadcast["known"][batch.labels] * distance, ()

    def client_step(self, carry: Carry, batch: Batch, ctx: ClientContext) -> tuple[Carry, Tensors]:
        theta = carry["theta"]
        if ctx.phase in ("statistics", "prototypes"):
            z = ctx.features(theta, batch.images)
            has = F.one_hot(batch.labels, len(carry["squares"])) * batch.mask[:, None]
            if ctx.phase == "prototypes":
                return {**carry, "after": carry["after"] + has.T @ z}, {}
            squares = carry["squares"] + has.T @ z.square().sum(dim=1)
            return {**carry, "before": carry["before"] + has.T @ z, "squares": squares}, {}
        if ctx.phase == "head":
            gradient, loss = ctx.gradient(theta, batch)
            new, _ = ctx.sgd(self.head_lr).step(theta, gradient, {})
            return {**carry, "theta": torch.where(ctx.is_personal, new, theta)}, {"head_loss": loss}
        gradient, loss, _ = ctx.gradient_of(self.losses, theta, batch, ())
        trains = ~ctx.is_personal
        new_theta, optimizer = ctx.optimizer.step(theta, gradient * trains, carry["optimizer"])
        return {**carry, "theta": torch.where(trains, new_theta, theta), "optimizer": optimizer}, {"loss": loss}

    def client_final(self, carry: Carry, ctx: ClientContext) -> tuple[Tensors, Tensors]:
        uploads, state = super().client_final(carry, ctx)
        counts, total = ctx.client.class_counts, ctx.client.num_samples
        weighted_means = carry["before"] / total  # p_k mu_k
        variance = (carry["squares"].sum() / total - weighted_means.square().sum()) / total
        statistics = torch.cat([variance[None], weighted_means.flatten()])
        # The sums are c_ik n_ik: their mean over clients, divided by that of n_ik, is C_k.
        prototypes = carry["after"].flatten()
        uploads |= {
            "prototypes": prototypes,
            "class_counts": counts,
            "head": state["personal"],
            "statistics": statistics,
        }
        return uploads, state

    def personalize(self, shared: Tensor, state: Tensors, ctx: ClientContext) -> Tensor:
        return ctx.layout.join(shared, state["personal"] if ctx.as_trained else state["head"])


def combination_weights(statistics: Tensor) -> Tensor:
    """The weights (K, K) float64 of all heads in that of each client, from V_i and H_i, (K, 1 + n)."""
    # Not at the top: scipy.optimize takes a tenth of a second, and this runs in the driver only.
    from scipy.optimize import nnls

    # A variance that was computed in float32 may be a little below 0.
    variances, means = statistics[:, 0].clamp(min=0), statistics[:, 1:]
    gram = means @ means.T
    rows = []
    for i in range(len(means)):
        bias = gram[i, i] - gram[i][None, :] - gram[i][:, None] + gram
        matrix = (torch.diag(variances) + bias).numpy()
        # With a = x / sum(x), the least a^T Q a over the simplex is the least x^T Q x / 2 - sum(x) over x >= 0, which is a
        # least-squares problem in a factor of Q.
        scale = np.trace(matrix) / len(matrix)
        if scale <= 0:  # all clients are equal and vary in nothing
            rows.append(torch.full((len(matrix),), 1 / len(matrix), dtype=torch.float64))
            continue
        factor = np.linalg.cholesky(matrix / scale + 1e-9 * np.eye(len(matrix)))
        solution, _ = nnls(factor.T, np.linalg.solve(factor, np.ones(len(matrix))))
        weights = solution / solution.sum()
        weights = np.where(weights < LEAST_WEIGHT, 0.0, weights)
        rows.append(torch.from_numpy(weights / weights.sum()))
    return torch.stack(rows)
