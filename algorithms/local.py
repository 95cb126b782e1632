"""Local training, the reference without federation.

    client i:  w_i = w_i after local epochs of SGD on its own loss
    server:    nothing

Down and up: nothing. Kept by a client: its whole model. As costly as FedAvg. As in the FedPerfix paper only the sampled
clients of a round train, so that every method takes the same number of local steps.
"""

from __future__ import annotations

from raysim.algorithms.base import About, FederatedAlgorithm


class Local(FederatedAlgorithm):
    """Nothing is shared: every client trains its own model, in the rounds in which it is sampled."""

    about = About("baseline", sent="nothing", kept="its whole model", evaluated="as it is", cost="1")
    shares_nothing = True
    whole_model_kept = "its clients share nothing"

    def personal_patterns(self) -> list[str]:
        return ["*"]
