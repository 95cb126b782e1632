"""FedSA-LoRA: Selective Aggregation for Low-Rank Adaptation in Federated Learning.

P. Guo, S. Zeng, Y. Wang, H. Fan, F. Wang, L. Qu. ICLR 2025. https://arxiv.org/abs/2410.01463

    client i:  (A_i, B_i, h_i) = (A, B_i, h_i) after local epochs of SGD on its own loss, the backbone frozen
    server:    A = the mean of A_i, weighted by samples

A is said to learn what is general, B what is a client's own. The authors adapt queries and values; raysim's LoRA is on
queries, keys and values.

Down and up: A. Kept by a client: B_i and its head h_i.
"""

from __future__ import annotations

from raysim.algorithms.base import About
from raysim.algorithms.lora import FederatedLoRA


class FedSALoRA(FederatedLoRA):
    """The first factor of LoRA is shared; the second and the head are personal."""

    paper = "https://arxiv.org/abs/2410.01463"
    about = About(
        "lora",
        sent="first factor of LoRA",
        kept="second factor, head",
        evaluated="as it is",
        cost="1, without the gradients of the backbone",
    )

    personal: list[str] = ["lora.up", "head"]
    """Patterns of the personal parameters."""
