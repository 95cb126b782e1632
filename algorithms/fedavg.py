"""FedAvg: Communication-Efficient Learning of Deep Networks from Decentralized Data.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas. AISTATS 2017. https://arxiv.org/abs/1602.05629

    client i:  w_i = w after local epochs of SGD on its own loss
    server:    w   = sum_i n_i w_i / sum_i n_i

Down: the whole model. Up: the whole model. Kept by a client: nothing. Costs of other methods are relative to this.
"""

from __future__ import annotations

from raysim.algorithms.base import About, FederatedAlgorithm


class FedAvg(FederatedAlgorithm):
    """Everything is shared: the mean of the clients' models, weighted by samples."""

    paper = "https://arxiv.org/abs/1602.05629"
    about = About("baseline", sent="S", kept="nothing", evaluated="as it is", cost="1")
