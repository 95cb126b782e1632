"""How long tasks are expected to take, by hand."""

import numpy as np
import pytest

from raysim.training.tasks import Evaluate, TaskResult, Train, TrainingReport
from raysim.workers.durations_and_timeouts import TaskDurations

NOTHING = TrainingReport(np.ones(1, bool), {}, {}, {}, None)


def sized(kind, index, samples):
    ids = np.array([index])
    more = {"weights": {}, "reports": np.ones(1, bool)} if kind is Train else {}
    return kind(round=0, index=index, clients=ids, read=np.array([0]), samples=samples, **more)


def took(task, seconds):
    return TaskResult(task, NOTHING, seconds=seconds)


def test_durations_are_measured_per_kind_and_guessed_before():
    durations = TaskDurations()
    train, evaluate = sized(Train, 0, 10), sized(Evaluate, 1, 10)
    assert durations.expected(train) == 3 * durations.expected(evaluate)
    durations.measure(took(train, 6.0))
    assert durations.expected(train) == pytest.approx(6.0)
    assert durations.expected(evaluate) == pytest.approx(2.0)  # in proportion, until it is measured itself
    durations.measure(took(evaluate, 5.0))
    assert durations.expected(evaluate) == pytest.approx(5.0)
    durations.measure(took(evaluate, 10.0))
    assert durations.expected(evaluate) == pytest.approx(6.0)


def test_the_timeout_is_twenty_times_what_is_expected_but_a_minute_at_least():
    durations, task = TaskDurations(), sized(Train, 0, 10)
    assert durations.timeout(task, compiles=False) == 1800
    durations.measure(took(task, 2.0))
    assert durations.timeout(task, compiles=False) == 60
    assert durations.timeout(task, compiles=True) == 900
    assert durations.timeout(sized(Train, 0, 50), compiles=False) == pytest.approx(200)
    assert durations.timeout(sized(Evaluate, 0, 50), compiles=False) == 1800  # not measured yet
