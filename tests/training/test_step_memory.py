import numpy as np
import pytest
import torch

from raysim.algorithms import ALGORITHMS
from raysim.training.step_memory import Choice, choose, trial_step

from configs import tiny
from simulation import Simulation

GB = 2**30


def peak(per_client, most=10**9):
    """Memory of a made-up model, for up to so many clients."""
    return lambda k: int(per_client * k) if k <= most else None


@pytest.mark.parametrize(
    ("peak_bytes", "total", "cohort", "batches", "asked", "expected"),
    [
        (peak(0.1 * GB), 80 * GB, 1000, 8, None, Choice(64, 4)),  # eight batches of 125 at most
        (peak(0.1 * GB), 80 * GB, 256, 32, None, Choice(8, 4)),  # a batch for each of 32 actors
        (peak(0.1 * GB), 80 * GB, 20, 32, None, Choice(1, 4)),
        (peak(0.1 * GB), 80 * GB, 400, 8, None, Choice(32, 4)),
        (peak(1 * GB), 80 * GB, 1000, 8, None, Choice(16, 4)),  # a fifth of the memory
        (peak(5 * GB), 80 * GB, 1000, 8, None, Choice(2, 4)),
        (peak(30 * GB), 80 * GB, 1000, 8, None, Choice(1, 2)),
        (peak(70 * GB), 80 * GB, 1000, 8, None, Choice(1, 1)),
        (peak(0.001 * GB, most=16), 80 * GB, 10_000, 8, None, Choice(16, 4)),  # out of memory at 32
        (peak(1 * GB), 80 * GB, 4, 8, None, Choice(1, 4)),
        (peak(1 * GB), 80 * GB, 1000, 8, 30, Choice(30, 2)),
        (peak(1 * GB, most=20), 80 * GB, 1000, 8, 30, Choice(30, 1)),
    ],
)
def test_the_largest_batch_that_leaves_room(peak_bytes, total, cohort, batches, asked, expected):
    assert choose(peak_bytes, total, cohort, batches, asked) == expected


@pytest.mark.parametrize("name", [*sorted(set(ALGORITHMS) - {"centralized"}), "methods:Known", "methods:SendsEach"])
def test_a_trial_step_goes_through_all_of_a_task_and_leaves_nothing(name):
    engine = Simulation(algorithm={"name": name}).engine
    before = engine.initial.clone(), engine.initial_state.copy()
    steps = []
    step = type(engine.algorithm).client_step
    engine.algorithm.__class__ = type("Counted", (type(engine.algorithm),), {"client_step": counted(step, steps)})
    trial_step(engine, np.array([0, 1, 2]))
    # Before the first round there is nothing to merge, nor a local adapter to be trained.
    idle = {"fedala": 11, "feddpa": tiny().train.local_epochs}.get(name, 0)
    assert len(steps) == len(engine.algorithm.epochs(tiny().train.local_epochs)) - idle  # one for each local epoch
    assert torch.equal(engine.initial, before[0])
    assert np.array_equal(engine.initial_state, before[1])


def counted(step, steps):
    def count(self, carry, batch, ctx):
        steps.append(ctx.epoch)
        return step(self, carry, batch, ctx)

    return count
