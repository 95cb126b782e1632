"""FedPer: Federated Learning with Personalization Layers.

M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary. 2019. https://arxiv.org/abs/1912.00818

    client i:  (w_i, p_i) = (w, p_i) after local epochs of SGD on its own loss, body and head together
    server:    w = sum_i n_i w_i / sum_i n_i

Down and up: the shared part w. Kept by a client: the head p_i. As costly as FedAvg. With other patterns in ``personal``
this is partial model personalisation of any part (the study of layers). What the code of the FedPerfix paper calls
FedRep is this method.
"""

from __future__ import annotations

from raysim.algorithms.base import About, FederatedAlgorithm


class FedPer(FederatedAlgorithm):
    """The head is personal, the rest is shared; both train together."""

    paper = "https://arxiv.org/abs/1912.00818"
    about = About("partial", sent="all but the head", kept="the head", evaluated="as it is", cost="1")

    personal: list[str] = ["head"]
    """Patterns of the personal parameters."""
