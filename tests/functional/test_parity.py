"""Numbers of the paper's original implementation; see data/README.md."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from raysim.functional.batch import Batch
from raysim.functional.context import ClientContext
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.optimizers import Optimizer
from raysim.functional.parameters import ParameterLayout
from raysim.plugins.registry import PLUGINS
from raysim.training.aggregation import Weights, weighted_sum

NUMBERS = np.load(Path(__file__).parent.parent / "data" / "fedperfix_numbers.npz")


GROUPS = ["prefix_-", "prefix_zero", "partial"]


def build(group, personal=()):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=5
    )
    if group != "partial":
        PLUGINS["prefix" if group == "prefix_-" else group].add(model, 8, 1.5, None)
    layout = ParameterLayout.of(model, personal)
    return model, layout, ClientContext(FunctionalModel(model, layout), layout, {}, Optimizer("sgd", 0.01), 0.01, 6, 0)


def theta(layout, prefix):
    """A vector in our layout from the original's names."""
    return layout.flatten(
        {name: torch.from_numpy(NUMBERS[f"{prefix}/{name.replace('qkv.adapter', 'adapter')}"]) for name in layout.names}
    )


BATCH = Batch(torch.from_numpy(NUMBERS["x"]), torch.from_numpy(NUMBERS["y"]), torch.ones(6))


@pytest.mark.parametrize("group", GROUPS)
def test_logits(group):
    _, layout, ctx = build(group)
    logits = ctx.logits(theta(layout, f"{group}/init"), BATCH.images)
    np.testing.assert_allclose(logits.detach(), NUMBERS[f"{group}/logits"], atol=1e-5)
    assert abs(NUMBERS[f"{group}/logits"]).max() > 0.1


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vectorised", [False, True])
def test_three_steps_of_sgd(group, vectorised):
    _, layout, ctx = build(group)
    now, losses = theta(layout, f"{group}/init"), []
    for _ in range(3):
        if vectorised:
            gradients, both = torch.func.vmap(lambda t: ctx.gradient(t, BATCH))(torch.stack([now, now]))
            gradient, loss = gradients[1], both[1]
        else:
            gradient, loss = ctx.gradient(now, BATCH)
        now, _ = ctx.optimizer.step(now, gradient, {})
        losses.append(loss.item())
    np.testing.assert_allclose(losses, NUMBERS[f"{group}/sgd3_losses"], atol=1e-5)
    np.testing.assert_allclose(now, theta(layout, f"{group}/sgd3"), atol=1e-5)
    np.testing.assert_allclose(ctx.logits(now, BATCH.images), NUMBERS[f"{group}/sgd3_logits"], atol=1e-5)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "personal", [["adapter", "head"], ["attn", "head"], ["norm*"], ["blocks.1", "adapter", "head"], []], ids=str
)
def test_the_weighted_mean_of_three_clients(group, personal):
    if group == "partial":
        personal = [pattern for pattern in personal if pattern != "adapter"]
    _, layout, _ = build(group, personal)
    clients = torch.stack([layout.split(theta(layout, f"{group}/client{i}"))[0] for i in range(3)])
    sum_ = weighted_sum(clients, Weights(np.array([10, 20, 30]), 60), np.ones(3, bool), 40)
    shared = [name.replace("qkv.adapter", "adapter") for name in layout.names[: layout.num_shared_tensors]]
    expected = np.concatenate([NUMBERS[f"{group}/agg4/{name}"].ravel() for name in shared])
    np.testing.assert_allclose(sum_.mean(40), expected, atol=1e-6)
    assert len(shared) == sum(not any(p.rstrip("*") in name for p in personal) for name in layout.names)
