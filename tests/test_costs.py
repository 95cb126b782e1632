"""What tasks are expected to cost, by hand."""

import numpy as np
import pytest

from raysim.workers.task_durations import Costs
from raysim.training.tasks import Task, TaskResult


def sized(kind, index, samples):
    return Task(kind, index, 0, np.array([index]), np.array([0]), samples=samples)


def test_costs_are_measured_per_kind_and_guessed_before():
    costs = Costs()
    train, evaluate = sized("train", 0, 10), sized("evaluate", 1, 10)
    assert costs.expected(train) == 3 * costs.expected(evaluate)
    costs.measured(TaskResult(train, None, {}, {}, None, seconds=6.0))
    assert costs.expected(train) == pytest.approx(6.0)
    assert costs.expected(evaluate) == pytest.approx(2.0)  # in proportion, until it is measured itself
    costs.measured(TaskResult(evaluate, None, {}, {}, None, seconds=5.0))
    assert costs.expected(evaluate) == pytest.approx(5.0)
    costs.measured(TaskResult(evaluate, None, {}, {}, None, seconds=10.0))
    assert costs.expected(evaluate) == pytest.approx(6.0)


def test_the_deadline_is_twenty_times_the_cost_but_a_minute_at_least():
    costs, task = Costs(), sized("train", 0, 10)
    assert costs.deadline(task, compiles=False) == 1800
    costs.measured(TaskResult(task, None, {}, {}, None, seconds=2.0))
    assert costs.deadline(task, compiles=False) == 60
    assert costs.deadline(task, compiles=True) == 900
    assert costs.deadline(sized("train", 0, 50), compiles=False) == pytest.approx(200)
    assert costs.deadline(sized("evaluate", 0, 50), compiles=False) == 1800  # not measured yet
