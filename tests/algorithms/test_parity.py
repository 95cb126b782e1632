"""Every method against numbers of a reference implementation; ``tests/data/README.md`` says where they are from."""

import numpy as np
import pytest
import torch
from parity import CLIENTS, NUMBERS, ParityTask, compare

SCHEDULES = ["all", "part"]
# The name in the numbers, the algorithm, and whether a client is evaluated with its own parameters (``params``).
METHODS = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox", "mu": 1.0},
    "scaffold": {"name": "scaffold"},
    "ditto": {"name": "ditto", "lamda": 1.0},
    "pfedme": {"name": "pfedme"},
    "pfedme_beta": {"name": "pfedme", "beta": 0.6},
    "fedala_sel": {"name": "fedala", "eta": 20.0},
    "fedrod": {"name": "fedrod"},
    "feddyn": {"name": "feddyn", "alpha": 1.0},
    "fedavgm": {"name": "fedavgm"},
    "fedadam": {"name": "fedadam"},
    "fedadam_v0": {"name": "fedadam", "initial_v": 1e-6},
    "lgfedavg": {"name": "lgfedavg"},
    "fedproto": {"name": "fedproto", "inference": "head"},
    "feddbe": {"name": "feddbe", "kappa": 50.0, "momentum": 0.5},
    "fedas_lr": {"name": "fedas", "align_lr": 0.5},
    "knnper": {"name": "knnper", "k": 5},
}


def stored(prefix):
    return [key.removesuffix("[::64]") for key in NUMBERS if key.startswith(prefix)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", METHODS)
def test_parameters_and_logits(method, schedule):
    task, at = ParityTask(schedule, METHODS[method]), f"{method}/{schedule}"
    for round_, trained in task.run():
        key = f"{at}/global/r{round_}"
        if key not in stored(f"{at}/global"):
            continue
        compare(key, task.shared if method == "lgfedavg" else task.flat(task.shared))
    for key in stored(f"{at}/client"):
        client, what = int(key.split("/client")[1][0]), key.split("/")[-1]
        if what == "params":
            compare(key, task.flat(task.predictor(client).theta[0]))
        elif what == "logits":
            compare(key, task.scores(client))
        elif what == "probabilities":
            compare(key, torch.from_numpy(task.scores(client)).softmax(dim=1))
        elif what == "logits_trained" and method not in ("fedrod", "ditto", "pfedme", "pfedme_beta"):
            (result,) = trained
            each = np.split(result.evaluation.probabilities, len(result.clients))
            of = dict(zip(result.clients.tolist(), each, strict=True))
            if client in of:
                np.testing.assert_allclose(
                    of[client], torch.from_numpy(NUMBERS[key]).softmax(dim=1), atol=1e-5, err_msg=key
                )


STATES = {
    "scaffold": ("c", "control"),
    "feddyn": ("grad", "linear"),
    "fedrod": ("personal_head", "personal"),
    "feddbe": ("mean", "personal"),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", STATES)
def test_what_clients_keep(method, schedule):
    theirs, ours = STATES[method]
    task, at = ParityTask(schedule, METHODS[method]), f"{method}/{schedule}/state"
    list(task.run())
    for client in CLIENTS:
        key, state = f"{at}/client{client}_{theirs}", task.state(client)
        compare(key, state[ours] if len(state[ours]) < 1000 else task.flat(state[ours]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_servers_states(schedule):
    for method, (theirs, ours) in {
        "scaffold": ("c", "control"),
        "feddyn": ("h", "h"),
        "fedproto": ("prototypes", "prototypes"),
    }.items():
        task = ParityTask(schedule, METHODS[method])
        for round_, _ in task.run():
            value = task.server_state[ours]
            compare(f"{method}/{schedule}/state/r{round_}/{theirs}", value if value.dim() > 1 else task.flat(value))
    task = ParityTask(schedule, METHODS["feddbe"])
    task.prepare()
    compare(f"feddbe/{schedule}/state/global_mean", task.server_state["mean"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_prototypes_predict_by_their_distances(schedule):
    task = ParityTask(schedule, {"name": "fedproto"})
    list(task.run())
    for client in CLIENTS:
        compare(f"fedproto/{schedule}/state/client{client}_distances", -task.scores(client))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_votes_of_neighbours(schedule):
    task = ParityTask(schedule, {"name": "knnper", "k": 5, "lamda": 1.0})
    list(task.run())
    for client in CLIENTS:
        votes = torch.from_numpy(task.scores(client)).softmax(dim=1)
        compare(f"knnper/{schedule}/state/client{client}_knn", votes)


@pytest.mark.parametrize("method", ["scaffold", "fedala_sel", "fedrod", "fedproto", "feddbe", "fedas_lr"])
def test_one_by_one_is_the_same(method):
    together, alone = ParityTask("part", METHODS[method]), ParityTask("part", METHODS[method])
    for (_, _), (_, _) in zip(together.run(), alone.run(together=False), strict=True):
        np.testing.assert_allclose(together.shared, alone.shared, atol=2e-6)
        np.testing.assert_allclose(together.states, alone.states, atol=1e-5)
