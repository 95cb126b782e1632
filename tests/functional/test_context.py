import pytest
import torch
from torch import nn

from raysim.functional.batch import Batch
from raysim.functional.context import ClientContext, halves
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.optimizers import Optimizer
from raysim.functional.parameters import ParameterLayout

from contexts import make_batch, make_context


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


@pytest.mark.parametrize(
    ("count", "expected"), [(8, (4, 4)), (7, (4, 3)), (5, (4, 1)), (4, (2, 2)), (3, (2, 1)), (1, (1, 0))]
)
def test_pairs_of_batches_are_cut_alike_padded_or_not(count, expected):
    x, y = torch.arange(8.0).view(8, 1, 1, 1), torch.arange(8)
    for width in {count, 8}:
        mask = (torch.arange(width) < count).float()
        parts = halves(Batch(x[:width], y[:width], mask), 4)
        chosen = [part.labels[part.mask.bool()].tolist() for part in parts]
        assert tuple(map(len, chosen)) == expected
        assert chosen[0] + chosen[1] == list(range(count))
        assert all(torch.equal(p.images.flatten().long(), p.labels) for p in parts)


def test_a_dot_product_leaves_running_statistics_out():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    layout = ParameterLayout.of(net)
    ctx = ClientContext(
        FunctionalModel(net, layout), layout, {"shared": torch.zeros(1)}, Optimizer("sgd", 0.1), 0.1, 6, 0
    )
    first, second = torch.arange(1.0, layout.num_parameters + 1), torch.ones(layout.num_parameters)
    learned = ~layout.mask(layout.statistics)
    assert (~learned).sum() == 6
    assert ctx.dot(first, second) == first[learned].sum()


def test_the_number_of_rounds_is_for_methods_that_say_so():
    with pytest.raises(RuntimeError, match="`depends_on_rounds = True`"):
        _ = make_context()[2].num_rounds
