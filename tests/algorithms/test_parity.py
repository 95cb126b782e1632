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


# The same for methods whose numbers were derived a second time, in plain torch, from the papers' equations.
DERIVED = {
    "moon": {"name": "moon", "mu": 5.0},
    "fednova": {"name": "fednova"},
    "fedyogi": {"name": "fedyogi", "beta2": 0.9},
    "fedadagrad": {"name": "fedadagrad"},
    "fedphp": {"name": "fedphp", "inherit": "rounds"},
    "gpfl": {"name": "gpfl", "lamda": 0.1, "mu": 0.01},
    "fedcp_noiseless": {"name": "fedcp", "lamda": 1.0, "gumbel": False},
    "pfedme_ref": {"name": "pfedme", "inner_decay": 0.001},
    "fedavgm_nesterov": {"name": "fedavgm", "nesterov": True},
    "fedala_all": {"name": "fedala", "eta": 20.0, "p": 0},
}
LAYERS = ("weight", "bias")
EXTRA = {
    "gpfl": [
        ("embedding", "embedding.weight"),
        *(
            (f"cov{4 * b + 2 * i + j}", f"cov.{branch}.{2 * i}.{kind}")
            for b, branch in enumerate(("gamma", "beta"))
            for i in range(2)
            for j, kind in enumerate(LAYERS)
        ),
    ],
    "fedcp_noiseless": [(f"cs{2 * i + j}", f"gate.{i}.{kind}") for i in range(2) for j, kind in enumerate(LAYERS)],
}


def stored(prefix):
    return [key.removesuffix("[::64]") for key in NUMBERS if key.startswith(prefix)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", METHODS)
def test_parameters_and_scores(method, schedule):
    task = ParityTask(schedule, METHODS[method])
    trained = check_globals(
        task, f"{method}/{schedule}", lambda t: t.shared if method == "lgfedavg" else t.flat(t.shared)
    )
    # Of these methods the stored logits are not those of the model with which a client is evaluated.
    check_clients(task, f"{method}/{schedule}", trained, with_trained=method not in ("ditto", "pfedme", "pfedme_beta"))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", DERIVED)
def test_parameters_and_scores_derived_a_second_time(method, schedule):
    at = f"derived/{method}/{schedule}"
    if not stored(at):
        assert (method, schedule) == ("fedcp_noiseless", "part")
        return
    extra = {ours: torch.from_numpy(NUMBERS[f"task/extra/{method}/{theirs}"]) for theirs, ours in EXTRA.get(method, ())}
    task = ParityTask(schedule, DERIVED[method], extra, local_epochs=3 if method == "fednova" else 2)
    if method == "fednova":
        task.work = np.array([1, 2, 3, 2]) / 3 + 1e-9
    if method == "fedcp_noiseless":
        task.states[:, -64:-32] = NUMBERS["task/extra/fedcp_noiseless/context"]  # its entry before the last
    in_base = slice(None, -165 if method in EXTRA else None)
    trained = check_globals(task, at, lambda t: t.flat(t.shared)[in_base])
    for theirs, ours in [*EXTRA.get(method, ()), *((n, n) for n in ("head_g.weight", "head_g.bias"))]:
        if f"{at}/global/r3/{theirs}" in NUMBERS:
            compare(f"{at}/global/r3/{theirs}", task.engine.layout.piece(task.shared, ours))
    check_clients(task, at, trained, with_trained=method not in ("fedphp", "pfedme_ref"))
    for client in CLIENTS:
        if method == "fedcp_noiseless":
            compare(f"{at}/state/client{client}_context", task.state(client)["context"])


def check_globals(task, at, value):
    """Run the task and compare the server's parameters after each round; returns what was trained last."""
    compared, trained = 0, []
    for round_, trained in task.run():  # noqa: B007 - the last one counts
        if (key := f"{at}/global/r{round_}") in stored(f"{at}/global"):
            compare(key, value(task))
            compared += 1
    assert compared or not stored(f"{at}/global/r1")
    return trained[0]


def check_clients(task, at, trained, with_trained):
    """Compare how clients are evaluated after the last round, and right after their last training."""
    each = np.split(trained.evaluation.probabilities, len(trained.clients))
    just_trained = dict(zip(trained.clients.tolist(), each, strict=True))
    for key in stored(f"{at}/client"):
        client, what = int(key.split("/client")[1][0]), key.split("/")[-1]
        if what == "params":
            compare(key, task.flat(task.predictor(client).theta[0]))
        elif what == "logits":
            compare(key, task.scores(client))
        elif what == "probabilities":
            compare(key, torch.from_numpy(task.scores(client)).softmax(dim=1))
        elif what == "logits_trained" and with_trained and client in just_trained:
            theirs = torch.from_numpy(NUMBERS[key]).softmax(dim=1)
            np.testing.assert_allclose(just_trained[client], theirs, atol=1e-5, err_msg=key)


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
            value = task.server.state[ours]
            compare(f"{method}/{schedule}/state/r{round_}/{theirs}", value if value.dim() > 1 else task.flat(value))
    task = ParityTask(schedule, METHODS["feddbe"])
    task.prepare()
    compare(f"feddbe/{schedule}/state/global_mean", task.server.state["mean"])


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
