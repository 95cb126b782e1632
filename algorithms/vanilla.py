"""Vanilla partial personalisation of a ViT: the FedPerfix paper's first step, before it adds the plugin.

G. Sun, M. Mendieta, J. Luo, S. Wu, C. Chen. ICCV 2023. https://arxiv.org/abs/2308.09160

    client i:  (w_i, p_i) = (w, p_i) after local epochs of SGD on its own loss
    server:    w = sum_i n_i w_i / sum_i n_i

Down and up: patch and position embedding, norms and MLPs, w. Kept by a client: every self-attention layer and the head,
p_i. As costly as FedAvg.
"""

from __future__ import annotations

from raysim.algorithms.base import About
from raysim.algorithms.fedper import FedPer


class Vanilla(FedPer):
    """Self-attention and head are personal, the rest is shared."""

    paper = "https://arxiv.org/abs/2308.09160"
    about = About(
        "partial", sent="all but attention and head", kept="attention and head", evaluated="as it is", cost="1"
    )

    personal: list[str] = ["attn", "head"]
    """Patterns of the personal parameters."""
