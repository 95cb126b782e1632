"""Methods whose server knows its clients, and methods on LoRA, against numbers of reference implementations."""

import numpy as np
import pytest
import torch
from parity import CLIENTS, NUMBERS, ParityTask, compare

SCHEDULES = ["all", "part"]


def extra(name):
    return torch.from_numpy(NUMBERS[f"task/extra/{name}"])


def in_our_order(task, flat):
    """A vector in timm's order as one in that of the layout."""
    positions = task.flat(torch.arange(len(flat), dtype=torch.float64)).astype(int)  # of each of timm's in ours
    ours = torch.empty_like(flat)
    ours[positions] = flat
    return ours


def test_ifca():
    task = ParityTask("all", {"name": "ifca"})
    task.server.state["others"] = in_our_order(task, extra("ifca/cluster1_init_flat"))[None]
    for round_, (trained,) in task.run():
        at = f"ifca/all/global/r{round_}"
        compare(f"{at}/cluster0", task.flat(task.shared))
        compare(f"{at}/cluster1", task.flat(task.server.state["others"][0]))
        assert trained.accepted.all()
    for client in CLIENTS:
        compare(f"ifca/all/client{client}/logits", task.scores(client))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_pfedhn(schedule):
    keys = {"server_lr": 1.0, "server_momentum": 0.0, "server_decay": 0.0, "clip_norm": None}
    task = ParityTask(schedule, {"name": "pfedhn", "embedding": 3, "hidden": 4, "layers": 1, **keys})
    state = {
        name: extra(f"pfedhn/{theirs}") for name, theirs in (("W0", "W1"), ("b0", "b1"), ("W1", "W2"), ("b1", "b2"))
    }
    state["W"] = torch.stack([in_our_order(task, column) for column in extra("pfedhn/W").T], dim=1)
    state["b"] = task.initial
    task.server.state |= state
    rows = task.server.rows.named(np.array(CLIENTS))
    task.server.rows.write(np.array(CLIENTS), {**rows, "embedding": extra("pfedhn/emb")})
    for round_, _ in task.run():
        compare(
            f"pfedhn_sync/{schedule}/state/r{round_}/embedding", task.server.rows.named(np.array(CLIENTS))["embedding"]
        )
    for client in CLIENTS:
        at = f"pfedhn_sync/{schedule}/client{client}"
        compare(f"{at}/params", task.flat(task.predictor(client).theta[0]))
        compare(f"{at}/logits", task.scores(client))


def test_fedfomo():
    task, everyone = ParityTask("all", {"name": "fedfomo", "epsilon": 0.0}), np.array(CLIENTS)
    others, before = ~np.eye(4, dtype=bool), np.zeros((4, 4))
    for round_, _ in task.run():
        kept = task.server.rows.named(everyone)["gains"].numpy()
        gains = np.stack([NUMBERS[f"fedfomo/all/state/r{round_}/client{client}_w"] for client in CLIENTS])
        np.testing.assert_allclose((kept - before)[others], gains[others], atol=1e-5)
        before = kept
    task.round(3, [everyone])  # the reference mixes right after the last round; here the next round begins with it
    for client in CLIENTS:
        compare(f"fedfomo/all/client{client}/params", task.flat(task.state(client)["start"]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fedpac(schedule):
    task = ParityTask(schedule, {"name": "fedpac", "head_lr": 0.05})
    for round_, _ in task.run():
        at = f"fedpac/{schedule}"
        compare(f"{at}/global/r{round_}", task.flat(task.shared)[:-165])
        compare(f"{at}/state/r{round_}/prototypes", task.server.state["prototypes"])
    for client in CLIENTS:
        compare(f"{at}/client{client}/params", task.flat(task.predictor(client).theta[0]))
        compare(f"{at}/client{client}/logits", task.scores(client))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_fedsa_lora(schedule):
    parts = {"down": extra("lora/A"), "up": extra("lora/B")}
    initial = {f"blocks.{b}.attn.qkv.lora.{part}.weight": parts[part][b] for b in range(2) for part in parts}
    task = ParityTask(schedule, {"name": "fedsa_lora", "mid_dim": 4}, initial, lr=0.5)
    layout = task.engine.layout
    order = [f"blocks.{b}.attn.qkv.lora.{part}.weight" for part in parts for b in range(2)] + [
        "head.weight",
        "head.bias",
    ]
    for round_, _ in task.run():
        compare(f"fedsa_lora/{schedule}/global/r{round_}", task.shared)
    for client in CLIENTS:
        theta = task.predictor(client).theta[0]
        compare(
            f"fedsa_lora/{schedule}/client{client}/params",
            torch.cat([layout.piece(theta, name).flatten() for name in order]),
        )
        compare(f"fedsa_lora/{schedule}/client{client}/logits", task.scores(client))
