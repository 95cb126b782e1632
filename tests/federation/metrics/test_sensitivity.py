import numpy as np
import pytest
import torch
from torch import nn

from raysim.federation.metrics.sensitivity import sensitivity_metrics
from raysim.functional.parameters import ParameterLayout
from raysim.training.aggregation import Weights
from raysim.training.sensitivity import largest_entries, squared_updates, sum_and_directions


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1, bias=False)
        self.norm = nn.LayerNorm(1)


def measure(updates, weights):
    layout = ParameterLayout.of(Two())
    updates, of_clients = torch.tensor(updates), Weights(np.array(weights), sum(weights))
    shared = torch.tensor([0.5, -1.0, 2.0, 0.25])
    squares = squared_updates(shared + updates, shared, layout)
    assert (largest_entries(squares, shared) >= (shared + updates).abs().amax(dim=1)).all()
    everyone = np.ones(len(weights), bool)
    total, direction = sum_and_directions(shared + updates, shared, squares, of_clients, everyone, layout)
    torch.testing.assert_close(total, torch.from_numpy(of_clients.shares) @ (shared + updates).double())
    weights = of_clients.shares
    mean = sum(w * u.double() for w, u in zip(weights, updates, strict=True))
    return sensitivity_metrics(
        mean, direction, {k: float((v.double().numpy() * weights).sum()) for k, v in squares.items()}, layout
    )


def test_by_hand():
    # head: (1, 0) and (0, 1) at right angles; norm: (2, 2) and (1, 1) in one direction
    result = measure([[1.0, 0.0, 2.0, 2.0], [0.0, 1.0, 1.0, 1.0]], [1, 1])
    assert result["sensitivity/head"] == pytest.approx(1 - np.sqrt(0.5))
    assert result["sensitivity/head_spread"] == pytest.approx(1.0)  # both are as far from the mean as it is long
    assert result["sensitivity/norm"] == pytest.approx(0.0, abs=1e-6)
    assert result["sensitivity/norm_spread"] == pytest.approx(1 / 3)


def test_weights_are_samples_and_what_did_not_move_is_left_out():
    result = measure([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]], [3, 1])
    assert result["sensitivity/head"] == pytest.approx(1 - (0.75 - 0.25))
    assert result["sensitivity/head_spread"] == pytest.approx(np.sqrt(1 - 0.25) / 0.5)
    assert not any("norm" in name for name in result)


@pytest.mark.parametrize("size", [1e-3, 1e-10, 1e-18])
def test_directions_of_tiny_updates_are_exact(size):
    """Norm layers start at 1 and 0: what moves may be far smaller than what does not."""
    layout = ParameterLayout.of(Two())
    shared = torch.tensor([0.5, -1.0, 1.0, 0.0])
    trained = shared + torch.tensor([[0.1, 0.1, 0.0, size], [-0.1, 0.2, 0.0, 3 * size]])
    squares = squared_updates(trained, shared, layout)
    equal, everyone = Weights(np.ones(2, np.int64), 2), np.ones(2, bool)
    _, direction = sum_and_directions(trained, shared, squares, equal, everyone, layout)
    assert direction[2:].tolist() == pytest.approx([0.0, 1.0], abs=1e-8)
