"""A context of a small network, and batches for it."""

import torch
from torch import nn

from raysim.functional.batch import Batch
from raysim.functional.context import ClientContext
from raysim.functional.functional_model import FunctionalModel
from raysim.functional.optimizers import Optimizer
from raysim.functional.parameters import ParameterLayout


def make_context(optimizer=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    layout = ParameterLayout.of(net)
    theta = layout.flatten(net.state_dict())
    return (
        net,
        theta,
        ClientContext(FunctionalModel(net, layout), layout, {}, optimizer or Optimizer("sgd", 0.1), 0.1, 6, 0),
    )


def make_batch(n=6, padded=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(n)
    mask[n - padded :] = 0
    images = torch.randn(n, 1, 2, 2, generator=generator)
    return Batch(images, torch.randint(3, (n,), generator=generator), mask)
