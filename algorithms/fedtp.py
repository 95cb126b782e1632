"""FedTP: Federated Learning by Transformer Personalization.

H. Li, Z. Cai, J. Wang, J. Tang, W. Ding, C.-T. Lin, Y. Shi. IEEE TNNLS 2023. https://arxiv.org/abs/2211.01572

    server:    p_i = h(v_i; phi), the projections to queries, keys and values of every layer, for each client of the round
    client i:  (w_i, p_i+) = (w, p_i) after local epochs of SGD on its own loss
    server:    w = sum_i n_i w_i / sum_i n_i
               (phi, v_i) = SGD with the gradient of  sum_i n_i <h(v_i; phi), p_i - p_i+> / sum_i n_i

Vanilla personalised self-attention, but that it comes out of a hypernetwork, which learns from all clients. As in the
authors' code everything else is shared, the head too; sums are weighted by samples, there is one step of phi per round,
and nothing is clipped. Their output layer has a random bias; here it starts as the model's own initial (pretrained)
projections.

Down: w and p_i; up: w and the change of p_i. Kept by a client: nothing that it uses. As costly for a client as FedAvg;
the server has ``hidden`` times as many parameters as the projections.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from raysim.algorithms.base import About, Upload
from raysim.algorithms.pfedhn import PFedHN
from raysim.search_space import Range, Tuned


class FedTP(PFedHN):
    """A hypernetwork on the server makes each client's self-attention, and the rest is shared."""

    paper = "https://arxiv.org/abs/2211.01572"
    about = About(
        "hypernetwork",
        sent="S, attention another one for each client",
        kept="nothing (an embedding is kept by the server)",
        evaluated="with the generated attention",
        cost="1; the server trains a hypernetwork",
    )
    uploads = {"shared": Upload(), "change": Upload("each")}
    shares_nothing = False
    whole_model_kept = ""
    weighting: ClassVar[str] = "samples"
    one_shared_model = False

    personal: list[str] = ["attn.qkv.weight"]
    """Patterns of the parameters that the hypernetwork makes: with the head ``[attn.qkv.weight, head]``."""
    server_lr: Annotated[
        float, Tuned(Range(1e-3, 1.0, log=True), "a factor of 10 and more around the authors' 0.01")
    ] = Field(0.1, gt=0)
    """Learning rate of phi and of the embeddings; 0.01 in the authors' code, for 1,500 rounds."""
    clip_norm: Annotated[float | None, Tuned(None, "against divergence only")] = Field(None, gt=0)
    """The gradient of phi and the embeddings is scaled down to this norm. null: never."""
    embedding: Annotated[int, Tuned([8, 32, 128], "the authors' 128 and less")] = Field(128, ge=1)
    """Length of an embedding."""

    def personal_patterns(self) -> list[str]:
        return self.personal
