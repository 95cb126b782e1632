"""FedPerfix: Towards Partial Model Personalization of Vision Transformers in Federated Learning.

G. Sun, M. Mendieta, J. Luo, S. Wu, C. Chen. ICCV 2023. https://arxiv.org/abs/2308.09160

    every self-attention layer:  (q, k, v) = W x + b + scale * (0, up(tanh(down(x))))
    client i:                    (w_i, p_i) = (w, p_i) after local epochs of SGD on its own loss
    server:                      w = sum_i n_i w_i / sum_i n_i

Down and up: the shared part w. Kept by a client: the plugin (``down``, ``up``) and the head, p_i.
"""

from __future__ import annotations

from pydantic import Field

from algorithms.base import FederatedAlgorithm, nn
from raysim.models.prefix import add_prefix


class FedPerfix(FederatedAlgorithm):
    """A personal prefix plugin in every self-attention layer and a personal head; the rest is shared."""

    paper = "https://arxiv.org/abs/2308.09160"

    personal: list[str] = ["adapter", "head"]
    """Patterns of the personal parameters. The paper adds the last block on CIFAR-100: ``blocks.11`` for depth 12."""
    mid_dim: int = Field(256, ge=1)
    """Width of the plugin's hidden layer."""
    scale: float = 1.5
    """Factor on the plugin's output."""

    def personal_patterns(self) -> list[str]:
        return self.personal

    def add_plugin(self, model: nn.Module) -> None:
        add_prefix(model, self.mid_dim, self.scale)
