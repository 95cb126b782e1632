import pandas as pd
import pytest

from raysim.analysis.comparison import compare
from raysim.analysis.divergence import rejected_share, rejections

from histories import small_history


def with_rejections(shares):
    """The small history, of whose cohorts of 10 these shares are rejected, by name."""
    table = small_history()
    table["cohort/size"], table["cohort/dropped"] = 10.0, 0.0
    table["cohort/rejected"] = 10 * table["name"].map(shares)
    return table


def test_runs_that_lost_most_of_their_updates_are_named():
    names = list(dict.fromkeys(small_history()["name"]))
    assert rejections(with_rejections(dict.fromkeys(names, 0.5))) == []
    lines = rejections(with_rejections({names[0]: 1.0, names[1]: 0.6}))
    assert [line for line in lines if line.startswith(f"{names[0]}, seed 0: every update of every round was rejected")]
    assert f"{names[1]}, seed 0: 60 % of its clients' updates were rejected, not finite or out of range" in lines
    assert rejections(small_history()) == []  # of a version that did not count them


def test_the_table_has_a_column_only_if_there_is_something_in_it():
    names = list(dict.fromkeys(small_history()["name"]))
    assert "rejected" not in compare(with_rejections(dict.fromkeys(names, 0.0)), "personalized")
    table = compare(with_rejections({names[0]: 0.0, names[1]: 1.0}), "personalized")
    assert table["rejected"].tolist() == ["0 %", "100 %"]


def test_who_was_dropped_did_not_train():
    table = pd.DataFrame({"cohort/size": [4.0, 4.0], "cohort/dropped": [0.0, 4.0], "cohort/rejected": [2.0, 0.0]})
    assert rejected_share(table) == pytest.approx(0.5)
