import math

import pandas as pd

from raysim.experiments.tuning.trials import value_of


def test_the_value_is_that_of_the_last_round_whatever_was_before():
    history = pd.DataFrame(
        {"round": [0, 1, 2], "a": [0.5, 0.6, 0.7], "b": [0.5, 0.6, math.nan], "c": [math.nan, math.nan, 0.1]}
    )
    assert [value_of(history, name) for name in ("a", "c")] == [0.7, 0.1]
    assert math.isnan(value_of(history, "b"))  # it diverged, or was not logged any more
    assert math.isnan(value_of(history, "nothing"))
