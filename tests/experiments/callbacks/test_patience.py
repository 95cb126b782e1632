import pytest

from raysim.errors import ConfigError
from raysim.experiments.callbacks.patience import Patience
from raysim.experiments.preparation import check
from raysim.storage.records import RoundRecord

from configs import tiny


class Watched:
    def __init__(self):
        self.reasons = []

    def stop(self, reason):
        self.reasons.append(reason)


def ends(values, patience):
    """After which round of these accuracies, None where nobody was evaluated, it asks for the end."""
    callback, run = Patience(patience), Watched()
    for round_, value in enumerate(values):
        callback.round_completed(
            run, RoundRecord(round_, 0, {} if value is None else {"validation/accuracy_mean": value})
        )
        if run.reasons:
            return round_, run.reasons[0]
    return None


def test_it_waits_for_a_better_round():
    why = "validation/accuracy_mean has not been above 0.6000 for 2 rounds, since round 2"
    assert ends([0.5, 0.6, 0.6, 0.5, 0.7], 2) == (3, why)
    assert ends([0.5, 0.4, 0.6, 0.5, 0.7, 0.7], 2) is None
    assert ends([0.5, 0.4], 1)[0] == 1
    assert (
        ends([None, 0.6, None, None, None, 0.5], 3)[0] == 5
    )  # rounds that were not evaluated count, but decide nothing


def test_without_validation_samples_it_is_refused():
    with pytest.raises(
        ConfigError, match=r"train\.patience: goes by validation samples, and there are none: set data\."
    ):
        check(tiny(train={"patience": 3}))
    check(tiny(train={"patience": 3}, data={"validation_fraction": 0.2}))
