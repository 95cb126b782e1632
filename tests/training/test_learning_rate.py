"""The learning rate over rounds, beside torch's own schedulers."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from raysim.config.sections.training import TrainConfig
from raysim.storage.study_folder import differences
from raysim.training.learning_rate import rate_factor
from raysim.training.tasks import BEFORE

from configs import tiny
from simulation import Simulation

ROUNDS = 12


def factors(rounds=ROUNDS, **train):
    return [rate_factor(TrainConfig(**train), rounds, round_) for round_ in range(rounds)]


@pytest.mark.parametrize(
    ("train", "scheduler"),
    [
        ({}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, ROUNDS)),
        ({"schedule": "step", "step_rounds": 5, "gamma": 0.1}, lambda o: lr_scheduler.StepLR(o, 5, 0.1)),
        ({"schedule": "exponential", "gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
    ],
)
def test_it_is_that_of_torchs_schedulers(train, scheduler):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    expected, schedule = [], scheduler(optimizer)
    for _ in range(ROUNDS):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert factors(**train) == pytest.approx(expected, abs=1e-12)


def test_warm_up_rises_to_the_rate_with_which_the_schedule_begins():
    assert factors(warmup_rounds=3)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = factors(warmup_rounds=4, schedule="cosine")
    assert cosine[4:] == factors(rounds=ROUNDS - 4, schedule="cosine")
    stepped = factors(warmup_rounds=1, schedule="step", step_rounds=2, gamma=0.5)
    assert stepped[:6] == [0.5, 1.0, 1.0, 0.5, 0.5, 0.25]
    assert rate_factor(TrainConfig(warmup_rounds=3), ROUNDS, BEFORE) == 0.25


def test_bits_of_a_cosine_are_as_they_were():
    for round_ in range(ROUNDS + 1):
        as_it_was = 0.5 * (1 + math.cos(math.pi * round_ / ROUNDS))
        assert rate_factor(TrainConfig(schedule="cosine"), ROUNDS, round_) == as_it_was


def test_clients_train_at_the_rate_of_the_round():
    """A step of SGD is as long as its learning rate."""
    train = {"local_epochs": 1, "batch_size": 400, "schedule": "exponential", "gamma": 0.5, "warmup_rounds": 1}
    simulation = Simulation(rounds=5, train=train, algorithm={"name": "fedavg"})
    lengths = []
    for round_ in range(4):
        context = simulation.engine._context(round_, {"shared": torch.zeros(simulation.engine.layout.num_shared)})
        lengths.append(context.optimizer.lr)
    assert lengths == [0.05, 0.1, 0.05, 0.025]
    assert context.full_lr == 0.1


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"schedule": "step", "gamma": 0.1}, "schedule 'step' needs 'step_rounds'"),
        ({"schedule": "exponential"}, "schedule 'exponential' needs 'gamma'"),
        ({"gamma": 0.1}, "'gamma' is not used by schedule 'constant'"),
        ({"schedule": "exponential", "gamma": 0.9, "step_rounds": 2}, "'step_rounds' is not used by schedule"),
        ({"schedule": "exponential", "gamma": 1.5}, "less than or equal to 1"),
        ({"warmup_rounds": 2}, "train.warmup_rounds is 2, but rounds is 2"),
    ],
)
def test_keys_that_do_not_fit_are_refused(train, problem):
    with pytest.raises(ValueError, match=problem):
        tiny(rounds=2, train=train)


def test_more_rounds_are_possible_where_the_rate_does_not_depend_on_their_number():
    for train, possible in (
        ({"schedule": "exponential", "gamma": 0.9, "warmup_rounds": 1}, True),
        ({"schedule": "cosine"}, False),
    ):
        before, now = (tiny(rounds=rounds, train=train).model_dump(mode="json") for rounds in (2, 5))
        assert (differences(before, now) == []) is possible
