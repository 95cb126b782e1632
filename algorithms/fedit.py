"""FedIT: Towards Building the Federated GPT: Federated Instruction Tuning.

J. Zhang, S. Vahidian, M. Kuo, C. Li, R. Zhang, T. Yu, Y. Zhou, G. Wang, Y. Chen. ICASSP 2024. https://arxiv.org/abs/2305.05644

    client i:  (A_i, B_i, h_i) = (A, B, h) after local epochs of SGD on its own loss, the backbone frozen
    server:    A, B, h = the means of A_i, B_i, h_i, weighted by samples

FedAvg on LoRA. The mean of A and that of B are not the factors of the mean update. The paper is about generation and has
no head h; here it is shared, or each client's own with ``personal: [head]``.

Down and up: LoRA and head. Kept by a client: nothing. Forward and backward as FedAvg's, without the backbone's gradients.
"""

from __future__ import annotations

from raysim.algorithms.base import About
from raysim.algorithms.lora import FederatedLoRA


class FedIT(FederatedLoRA):
    """Both factors of LoRA are averaged, on a frozen backbone."""

    paper = "https://arxiv.org/abs/2305.05644"
    about = About(
        "lora",
        sent="LoRA and head",
        kept="nothing",
        evaluated="as it is",
        cost="1, without the gradients of the backbone",
    )
