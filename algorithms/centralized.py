"""Centralized training, the reference without clients.

    in every round:  w = w after local epochs of SGD on as many training samples as the round's cohort has, drawn from
                     those of all clients

No federation: one model is trained on pooled data and evaluated on the test samples of the same clients; as trained and
after aggregation are the same. It sees as many samples, in as many epochs, as the cohort of a federated run does.
"""

from __future__ import annotations

from raysim.algorithms.base import About, FederatedAlgorithm


class Centralized(FederatedAlgorithm):
    """One model, trained on the pooled training data of all clients."""

    about = About(
        "baseline",
        sent="– (one model on pooled data)",
        kept="nothing",
        evaluated="after the round's training",
        cost="1",
    )
    pooled = True
    whole_model_kept = "it has no clients"
