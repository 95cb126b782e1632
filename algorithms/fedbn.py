"""FedBN: Federated Learning on Non-IID Features via Local Batch Normalization.

X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou. ICLR 2021. https://arxiv.org/abs/2102.07623

    client i:  (w_i, b_i) = (w, b_i) after local epochs of SGD on its own loss
    server:    w = sum_i n_i w_i / sum_i n_i

Down and up: everything but the normalisation layers. Kept by a client: those, b_i. As costly as FedAvg. As in the
FedPerfix paper these are the LayerNorms of a ViT (``norm1``, ``norm2``, ``norm``), and the head is shared.
"""

from __future__ import annotations

from raysim.algorithms.base import About
from raysim.algorithms.fedper import FedPer


class FedBN(FedPer):
    """The normalisation layers are personal, the rest is shared."""

    paper = "https://arxiv.org/abs/2102.07623"
    about = About("partial", sent="all but the norms", kept="the norms", evaluated="as it is", cost="1")

    personal: list[str] = ["*norm*"]
    """Patterns of the personal parameters. For timm's resnet50: ``[bn*, downsample.1]``."""
