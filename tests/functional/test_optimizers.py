from dataclasses import replace

import pytest
import torch
from torch import nn

from raysim.functional.optimizers import Optimizer

from contexts import make_batch, make_context

OPTIMIZERS = [
    (Optimizer("sgd", 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    (
        Optimizer("sgd", 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    ),
    (
        Optimizer("sgd", 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    ),
    (Optimizer("adam", 0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
    (Optimizer("adamw", 0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
]
IDS = ["sgd", "sgd momentum", "sgd nesterov", "adam", "adamw"]


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS, ids=IDS)
def test_they_agree_with_torch(ours, theirs, clip_norm):
    ours = replace(ours, clip_norm=clip_norm)
    net, theta, ctx = make_context(ours)
    optimizer, state = theirs(net.parameters()), ours.init(theta)
    for step in range(5):
        batch = make_batch(seed=step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.images), batch.labels).backward()
        if clip_norm is not None:
            length = nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
            assert length > clip_norm
        optimizer.step()
        theta, state = ours.step(theta, ctx.gradient(theta, batch)[0], state)
    torch.testing.assert_close(theta, ctx.layout.flatten(net.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ours", "_"), OPTIMIZERS, ids=IDS)
def test_vectorised_steps_are_those_of_each_client(ours, _):
    ours = replace(ours, clip_norm=1.0, personal=torch.arange(7) > 4, personal_factor=0.5)
    generator = torch.Generator().manual_seed(0)
    theta, gradients = torch.randn(3, 7, generator=generator), torch.randn(2, 3, 7, generator=generator)
    gradients[:, 1] *= 0.01  # the second client's are not clipped
    state = torch.func.vmap(ours.init)(theta)
    alone = [(theta[k], ours.init(theta[k])) for k in range(3)]
    for gradient in gradients:
        theta, state = torch.func.vmap(ours.step)(theta, gradient, state)
        alone = [ours.step(t, g, s) for (t, s), g in zip(alone, gradient, strict=True)]
    for k, (expected, its_state) in enumerate(alone):
        assert torch.allclose(theta[k], expected, rtol=1e-6, atol=1e-7)
        for name, value in its_state.items():
            assert torch.allclose(state[name][k], value, rtol=1e-6)


def test_clipping_leaves_short_gradients_and_running_statistics_alone():
    statistics = torch.tensor([False, False, True])
    ours = Optimizer("sgd", 1.0, clip_norm=5.0, statistics=statistics)
    theta, _ = ours.step(torch.zeros(3), torch.tensor([6.0, 8.0, 100.0]), {})
    assert torch.allclose(theta, torch.tensor([-3.0, -4.0, -100.0]))
    theta, _ = ours.step(torch.zeros(3), torch.tensor([3.0, 4.0, 100.0]), {})
    assert torch.allclose(theta, torch.tensor([-3.0, -4.0, -100.0]), rtol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS, ids=IDS)
def test_personal_parameters_have_the_learning_rate_of_a_group_of_their_own(ours, theirs):
    start, gradients = torch.randn(6), torch.randn(4, 6)
    ours = replace(ours, personal=torch.tensor([False] * 4 + [True] * 2), personal_factor=0.1)
    shared, personal = nn.Parameter(start[:4].clone()), nn.Parameter(start[4:].clone())
    optimizer = theirs([{"params": [shared]}, {"params": [personal], "lr": 0.1 * ours.lr}])
    theta, state = start, ours.init(start)
    own, own_state = start, ours.init(start)
    for gradient in gradients:
        shared.grad, personal.grad = gradient[:4].clone(), gradient[4:].clone()
        optimizer.step()
        theta, state = ours.step(theta, gradient, state)
        own, own_state = ours.of_own_model().step(own, gradient, own_state)
    torch.testing.assert_close(theta, torch.cat([shared, personal]).detach())
    torch.testing.assert_close(own[4:], personal.detach())
    assert not torch.allclose(own[:4], shared)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_weight_with_which_gradients_count(momentum, nesterov):
    """Of a constant gradient of 1 at a learning rate of 1: how far it gets in some steps."""
    sgd = Optimizer("sgd", 1.0, momentum=momentum, nesterov=nesterov)
    theta = torch.zeros(1)
    state = sgd.init(theta)
    for steps in range(1, 6):
        theta, state = sgd.step(theta, torch.ones(1), state)
        torch.testing.assert_close(sgd.total_weight(torch.tensor(float(steps))), -theta[0])
