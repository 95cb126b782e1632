"""What an actor reads and keeps, without Ray around it."""

import numpy as np
import pytest

from raysim.training.tasks import Evaluate, EvaluateGlobal
from raysim.workers.client_actor import ClientActor

from simulation import Simulation


class States:
    """Personal states that count what is read of them."""

    def __init__(self, simulation):
        self.reads, self._initial = [], simulation.engine.initial_state

    def read(self, addresses, initial):
        self.reads.append(addresses.tolist())
        return np.tile(self._initial, (len(addresses), 1))


@pytest.mark.parametrize(
    ("kind", "name", "reads"),
    [
        (Evaluate, "ditto", [[7, 9]]),
        (Evaluate, "scaffold", []),
        (EvaluateGlobal, "ditto", []),
        (EvaluateGlobal, "scaffold", []),
    ],
)
def test_states_are_read_by_tasks_that_need_them(kind, name, reads):
    """They may lie on another node, or on one that is gone, and be larger than what is evaluated."""
    simulation = Simulation(algorithm={"name": name})  # all is shared, and yet clients have a state
    assert simulation.engine.state_layout.size > 0
    actor = object.__new__(ClientActor.__ray_metadata__.modified_class)
    actor._engine, actor._states = simulation.engine, States(simulation)
    task = kind(round=0, index=0, clients=np.array([0, 1]), read=np.array([7, 9]))
    evaluation = actor._outcome(task, simulation.broadcast)
    assert evaluation.clients.tolist() == [0, 1]
    assert actor._states.reads == reads
