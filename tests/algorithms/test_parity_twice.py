"""Methods without numbers of a reference implementation, against numbers that were derived twice from the rules.

Two derivations in plain torch, one on flat vectors, one with modules, hooks and optimisers, were made independently
of raysim's files and of each other, and agree to 1e-6; ``tests/data/README.md``.
"""

import numpy as np
import pytest
import torch
from parity import CLIENTS, NUMBERS, SHAPES, ParityTask, compare

from raysim.algorithms.lora import rank_index

SCHEDULES = ["all", "part"]
EVERYONE = np.array(CLIENTS)
LORA_NAMES = [f"blocks.{b}.attn.qkv.lora.{part}.weight" for part in ("down", "up") for b in range(2)]
HEAD = ["head.weight", "head.bias"]


def extra(name):
    return torch.from_numpy(NUMBERS[f"task/extra/{name}"])


def rows_of(task):
    return task.server.rows.named(EVERYONE)


def pieces(task, vector, names):
    return torch.cat([task.engine.layout.piece(vector, name).flatten() for name in names])


def on_lora(schedule, algorithm):
    parts = {"down": extra("lora/A"), "up": extra("lora/B")}
    initial = {f"blocks.{b}.attn.qkv.lora.{part}.weight": parts[part][b] for b in range(2) for part in parts}
    local = (
        {name.replace("lora", "local"): -value for name, value in initial.items()}
        if algorithm["name"] == "feddpa"
        else {}
    )
    return ParityTask(schedule, {"mid_dim": 4, **algorithm}, initial | local, lr=0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fedamp(schedule):
    task, at = (
        ParityTask(schedule, {"name": "fedamp", "alpha": 0.05, "sigma": 0.1, "lamda": 0.25}),
        f"twice/fedamp/{schedule}",
    )
    for round_, cohort in enumerate(task.cohorts):
        for client, cloud in zip(cohort, task.server.messages(round_, cohort)["cloud"], strict=True):
            compare(f"{at}/r{round_ + 1}/cloud{client}", task.flat(cloud))
        task.round(round_, [cohort])
    for client in CLIENTS:
        compare(f"{at}/client{client}/own", task.flat(task.predictor(client).theta[0]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_apple(schedule):
    keys = {"p_lr": 0.02, "mu": 1.0, "pull_rounds": 1.0, "start": "uniform", "core_rate": "clients"}
    task, at = ParityTask(schedule, {"name": "apple", **keys}), f"twice/apple/{schedule}"
    for round_, _ in task.run():
        for client in CLIENTS:
            compare(f"{at}/r{round_}/core{client}", task.flat(task.server.state["cores"][client]))
            compare(f"{at}/r{round_}/p{client}", rows_of(task)["mixture"][client])
    for client in CLIENTS:
        compare(f"{at}/client{client}/mixture", task.flat(task.predictor(client).theta[0]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pfedla(schedule):
    task = ParityTask(schedule, {"name": "pfedla", "embedding": 4, "hidden": 8, "server_lr": 0.5})
    at, layout = f"twice/pfedla/{schedule}", task.engine.layout
    ours = [list(SHAPES).index(name) for name in layout.names]  # which of timm's tensors each of ours is
    start = {f"{kind}{i}": extra(f"pfedla/{kind}{i + 1}") for kind in "Wb" for i in range(3)}
    start |= {"W": extra("pfedla/W")[ours], "b": extra("pfedla/b")[ours]}
    rows = {name: value.flatten().expand(4, -1) for name, value in start.items()}
    task.server.rows.write(EVERYONE, {**rows_of(task), **rows, "v": extra("pfedla/emb")})
    for round_, cohort in enumerate(task.cohorts):
        known = task.server.rows.named(cohort)
        context = task.server._context(round_, 0, 2)
        for client, a in zip(cohort, task.algorithm.weights(known, torch.from_numpy(cohort), context), strict=True):
            compare(f"{at}/r{round_ + 1}/alpha{client}", a[np.argsort(ours)])
        task.round(round_, [cohort])
        for client in CLIENTS:
            compare(f"{at}/r{round_ + 1}/model{client}", task.flat(rows_of(task)["model"][client]))
    for client in CLIENTS:
        compare(f"{at}/client{client}/mixed", task.flat(task.predictor(client).theta[0]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fedtp(schedule):
    keys = {"server_lr": 1.0, "server_momentum": 0.9, "server_decay": 1e-3, "embedding": 3, "hidden": 4, "layers": 1}
    task, at = ParityTask(schedule, {"name": "fedtp", **keys}), f"twice/fedtp/{schedule}"
    names = task.engine.layout.names[task.engine.layout.num_shared_tensors :]
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])
    places = dict(zip(SHAPES, zip(ends - [np.prod(s) for s in SHAPES.values()], ends, strict=True), strict=True))
    weights = {
        ours: extra(f"pfedhn/{theirs}") for ours, theirs in (("W0", "W1"), ("b0", "b1"), ("W1", "W2"), ("b1", "b2"))
    }
    weights["W"] = torch.cat([extra("pfedhn/W")[slice(*places[name])] for name in names])
    task.server.state |= weights
    rows = {**rows_of(task), "embedding": extra("pfedhn/emb"), "momentum": torch.zeros(4, 3)}
    task.server.rows.write(EVERYONE, rows)
    task.server.state |= {f"momentum.{n}": torch.zeros_like(v) for n, v in task.server.state.items() if "." not in n}
    for round_, _ in task.run():
        compare(f"{at}/r{round_}/shared", task.flat(task.shared))
        compare(f"{at}/r{round_}/embedding", rows_of(task)["embedding"])
    for client in CLIENTS:
        compare(f"{at}/client{client}/params", task.flat(task.predictor(client).theta[0]))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("method", "keys"),
    [
        ("fml", {"alpha": 0.3, "beta": 0.6}),
        ("fedkd_update", {"compressed": "update"}),
        ("fedkd_parameters", {"compressed": "parameters"}),
    ],
)
def test_mutual_learning(method, keys, schedule):
    task, at = ParityTask(schedule, {"name": method.split("_")[0], **keys}), f"twice/{method}/{schedule}"
    for round_, _ in task.run():
        compare(f"{at}/r{round_}/shared", task.flat(task.shared))
    for client in CLIENTS:
        compare(f"{at}/client{client}/own", task.flat(task.state(client)["own"]))
        if method != "fml":
            compare(f"{at}/client{client}/map", task.state(client)["map"].view(32, 32))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "keys",
    [
        {"name": "fedit"},
        {"name": "ffa_lora"},
        {"name": "feddpa"},
        {"name": "hetlora", "ranks": [2, 3, 4], "lamda": 0.05, "gamma": 0.7},
    ],
    ids=lambda keys: keys["name"],
)
def test_lora(keys, schedule):
    task, at = on_lora(schedule, keys), f"twice/{keys['name']}/{schedule}"
    names = [*LORA_NAMES[2 if keys["name"] == "ffa_lora" else 0 :], *HEAD]
    for round_, _ in task.run():
        shared = task.shared
        if keys["name"] == "hetlora":
            left = [task.algorithm._rank(task.state(client)).item() for client in CLIENTS]
            # A rank that nobody of the round has becomes 0 in the derivations, for good; here it stays.
            index = rank_index(task.engine.layout, shared.device)[: len(shared)]
            shared = torch.where(index >= max(left[c] for c in task.cohorts[round_ - 1]), torch.nan, shared)
        compare(f"{at}/r{round_}/shared", pieces(task, shared, names))
        if keys["name"] == "hetlora":
            assert left == NUMBERS[f"{at}/r{round_}/rank"].tolist()
    if keys["name"] == "feddpa":
        for client in CLIENTS:
            theta = task.engine.layout.join(task.shared, task.state(client)["personal"])
            local = [name.replace("lora", "local") for name in LORA_NAMES]
            compare(f"{at}/client{client}/local", pieces(task, theta, local))
            compare(f"{at}/client{client}/logits", task.scores(client))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_flexlora(schedule):
    task, at = on_lora(schedule, {"name": "flexlora", "ranks": [1, 2, 4]}), f"twice/flexlora/{schedule}"
    for round_, _ in task.run():
        for b in range(2):
            down, up = (task.engine.layout.piece(task.shared, name) for name in LORA_NAMES[b::2])
            compare(f"{at}/r{round_}/product{b}", up @ down)
        compare(f"{at}/r{round_}/head", pieces(task, task.shared, HEAD))
    for client in CLIENTS:
        compare(f"{at}/client{client}/logits", task.scores(client))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pfedpt(schedule):
    sides = {"top": (3, 2, 16), "bottom": (3, 2, 16), "left": (3, 12, 2), "right": (3, 12, 2)}
    frame = {f"patch_embed.frame.{side}": torch.full(shape, 0.1) for side, shape in sides.items()}
    task, at = (
        ParityTask(schedule, {"name": "pfedpt", "prompt_epochs": 2, "width": 2}, frame),
        f"twice/pfedpt/{schedule}",
    )
    for round_, _ in task.run():
        compare(f"{at}/r{round_}/shared", task.flat(task.shared))
    for client in CLIENTS:
        theta = task.engine.layout.join(task.shared, task.state(client)["personal"])
        parts = {side: task.engine.layout.piece(theta, f"patch_embed.frame.{side}") for side in sides}
        middle = torch.cat([parts["left"], torch.zeros(3, 12, 12), parts["right"]], dim=2)
        compare(f"{at}/client{client}/frame", torch.cat([parts["top"], middle, parts["bottom"]], dim=1))
