import torch
from torch import nn

from raysim.functional.context import ClientContext
from raysim.functional.loss_and_gradient import Batch, Network
from raysim.functional.optimizers import Optimizer
from raysim.functional.parameters import ParameterLayout


def make_context(optimizer=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    layout = ParameterLayout.of(net)
    theta = layout.flatten(net.state_dict())
    return net, theta, ClientContext(Network(net, layout), layout, {}, optimizer or Optimizer("sgd", 0.1), 6, 0)


def make_batch(n=6, padded=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(n)
    mask[n - padded :] = 0
    images = torch.randn(n, 1, 2, 2, generator=generator)
    return Batch(images, torch.randint(3, (n,), generator=generator), mask)


def test_gradient_is_that_of_plain_autograd():
    net, theta, ctx = make_context()
    batch = make_batch()
    gradient, loss = ctx.gradient(theta, batch)
    expected = nn.functional.cross_entropy(net(batch.images), batch.labels)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.cat([p.grad.flatten() for p in net.parameters()]))


def test_padded_samples_have_no_part_in_it():
    _, theta, ctx = make_context()
    padded = make_batch(padded=2)
    cut = Batch(*(part[:4] for part in padded))
    for ours, expected in zip(ctx.gradient(theta, padded), ctx.gradient(theta, cut), strict=True):
        torch.testing.assert_close(ours, expected)


def test_vectorised_gradients_are_those_of_each_client():
    _, theta, ctx = make_context()
    thetas = torch.stack([theta, theta + 0.1, theta * 2])
    parts = [make_batch(padded=k, seed=k) for k in range(3)]
    batch = Batch(*(torch.stack(column) for column in zip(*parts, strict=True)))
    gradients, losses = torch.func.vmap(ctx.gradient)(thetas, batch)
    for k in range(3):
        expected = ctx.gradient(thetas[k], parts[k])
        torch.testing.assert_close((gradients[k], losses[k]), expected)
    at_one_point, _ = torch.func.vmap(lambda b: ctx.gradient(theta, b))(batch)
    torch.testing.assert_close(at_one_point[1], ctx.gradient(theta, parts[1])[0])
    # theta may be the result of an operation that puts vmap's axis elsewhere
    mixed, _ = torch.func.vmap(lambda c, b: ctx.gradient(thetas.T @ c, b))(torch.eye(3), batch)
    torch.testing.assert_close(mixed, gradients)
