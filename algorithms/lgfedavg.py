"""LG-FedAvg: Think Locally, Act Globally: Federated Learning with Local and Global Representations.

P. P. Liang, T. Liu, L. Ziyin, N. B. Allen, R. P. Auerbach, D. Brent, R. Salakhutdinov, L.-P. Morency. 2020.
https://arxiv.org/abs/2001.01523

    client i:  (p_i, w_i) = (p_i, w) after local epochs of SGD on its own loss, representation and head together
    server:    w = sum_i n_i w_i / sum_i n_i

Down and up: the head w. Kept by a client: everything else, p_i. As costly to compute as FedAvg, and almost nothing is
sent. The authors weigh clients equally and start from a model that FedAvg trained; here, as in PFLlib, clients are
weighted by samples and start from the initial model (give ``model.weights`` for another one).
"""

from __future__ import annotations

from raysim.algorithms.base import About
from raysim.algorithms.fedper import FedPer


class LGFedAvg(FedPer):
    """The head is shared, the representation is personal."""

    paper = "https://arxiv.org/abs/2001.01523"
    about = About("partial", sent="the head", kept="all but the head", evaluated="as it is", cost="1")
    needs_body = True

    personal: list[str] = ["*", "!head"]
    """Patterns of the personal parameters: everything but the head."""
