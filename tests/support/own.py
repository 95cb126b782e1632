"""A user's own code, of every kind that a configuration can name."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import raysim
from raysim.data.dataset import Dataset
from raysim.functional.optimizers import Optimizer
from raysim.plugins.registry import Plugin


class Gain(nn.Module):
    def __init__(self, size, scale):
        super().__init__()
        self.gain = nn.Parameter(torch.full((size,), scale))

    def forward(self, x):
        return x * self.gain


def add_gain(model, scale):
    model.norm = nn.Sequential(model.norm, Gain(model.embed_dim, scale))


DATA = {"name": "own:stripes", "options": {"side": 6}, "num_clients": 8}
PARTITION = {"name": "own:in_turn", "options": {"skip": 2}}
PLUGIN = Plugin(lambda model, mid_dim, scale, depth: add_gain(model, scale), "gain", None, 1.0)
MODEL = {"name": "own:perceptron", "kwargs": {"width": 12}, "image_size": 6}


def stripes(config, *, side: int, samples: int = 240):
    """Vertical or horizontal stripes, in noise, from three places."""
    rng = np.random.default_rng(0)
    labels = np.arange(samples) % 2
    images = rng.integers(0, 120, (samples, side, side, 1), np.uint8)
    images[labels == 0, ::2] += 100
    images[labels == 1, :, ::2] += 100
    return Dataset(images, labels, ("horizontal", "vertical"), np.arange(samples) % 3, ("a", "b", "c"))


def in_turn(labels, domains, num_clients: int, rng: np.random.Generator, skip: int = 0):
    """Samples dealt like cards, after some that nobody gets."""
    order = rng.permutation(len(labels))[skip:]
    return [order[client::num_clients] for client in range(num_clients)]


def perceptron(num_classes: int, in_chans: int, img_size: int, width: int = 8):
    layers = [nn.Flatten(), nn.Linear(in_chans * img_size**2, width), nn.ReLU()]
    return nn.Sequential(*layers).append(nn.Linear(width, num_classes))


def the_first(round, num_clients, size, rng):
    """The same clients in every round."""
    return np.arange(size)


def spread(results, labels):
    """The largest less the smallest accuracy, and the share of test samples with a label above 0."""
    return {"spread": results.accuracy.max() - results.accuracy.min(), "positive": (labels > 0).mean()}


def brighter(images, u):
    """By up to 32, of 8 random numbers per image the first."""
    return images + (u[:, 0] * 32).to(torch.uint8)[:, None, None, None]


@dataclass(frozen=True)
class Sign(Optimizer):
    """A step of ``lr`` in the direction of the sign of an average of gradients."""

    beta: float = 0.9

    def init(self, theta):
        return {"mean": torch.zeros_like(theta)}

    def update(self, theta, gradient, state):
        mean = torch.lerp(gradient, state["mean"], self.beta)
        return theta - self.lr * mean.sign(), {"mean": mean}


class Early(raysim.Callback):
    """Ends a run when its loss has not become smaller for so many rounds."""

    def __init__(self, patience: int = 3):
        self.patience, self.best, self.since = patience, float("inf"), 0

    def round_completed(self, run, record):
        loss = record.metrics["train/loss"]
        self.since = 0 if loss < self.best else self.since + 1
        self.best = min(self.best, loss)
        run.log({"own/best": self.best}, record.round)
        if self.since >= self.patience:
            run.stop(f"no gain for {self.since} rounds")


class Stripes:
    """No callback."""


def no_callback():
    """A number instead of one."""
    return 3
