"""Which clients are evaluated when."""

import pytest

from raysim.federation.cohort import sample_cohort
from raysim.federation.evaluation_schedule import EvaluationSchedule

from configs import tiny


def test_every_so_many_rounds_and_the_last():
    schedule = EvaluationSchedule(tiny(rounds=5, evaluate={"every": 2}))
    assert [schedule.is_due(r) for r in range(5)] == [False, True, False, True, True]
    assert [schedule.is_last(r) for r in range(5)] == [False] * 4 + [True]
    assert schedule.reported(0).tolist() == schedule.evaluated(0).tolist() == []


@pytest.mark.parametrize("clients", ["all", "cohort", 3])
def test_the_last_round_evaluates_all_and_reports_those_that_were_asked_for(clients):
    config = tiny(rounds=2, evaluate={"clients": clients})
    schedule = EvaluationSchedule(config)
    expected = {"all": 8, "cohort": 4, 3: 3}[clients]
    assert [len(schedule.reported(r)) for r in (0, 1)] == [expected] * 2
    assert [len(schedule.evaluated(r)) for r in (0, 1)] == [expected, 8]
    if clients == "cohort":
        assert schedule.reported(0).tolist() == sample_cohort(config, 0).tolist()


@pytest.mark.parametrize(
    ("asked", "parameters", "measured"),
    [
        ("auto", 10_000_000, [True] * 5),
        ("auto", 10_000_001, [False] * 5),
        (True, 10**9, [True] * 5),
        (False, 1000, [False] * 5),
        (2, 10**9, [False, True, False, True, True]),
        (1, 1000, [True] * 5),
    ],
)
def test_when_the_sensitivity_is_measured(asked, parameters, measured):
    schedule = EvaluationSchedule(tiny(rounds=5, evaluate={"sensitivity": asked}))
    assert [schedule.measures_sensitivity(round, parameters) for round in range(5)] == measured
