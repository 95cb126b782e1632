"""Centralized training: the pooled reference."""

import numpy as np
import torch

from raysim import seeds
from raysim.models.build import build_model
from raysim.training.transforms import ModelInput

from simulation import Simulation


def test_training_on_pooled_samples_is_plain_torch_training_on_them():
    s = Simulation(algorithm={"name": "centralized"})
    engine, drawn = s.engine, np.array([5, 90, 17, 300, 211, 42, 8, 150, 77, 399, 23])
    trained = s.train(3, np.array([0]), evaluate=False, pooled=drawn)
    model = build_model(s.config.model, s.algorithm, 10, 1, 0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rng = seeds.stream(0, "batches", 3, 0)
    for order in rng.permuted(np.tile(np.arange(len(drawn)), (2, 1)), axis=1):
        for chunk in torch.from_numpy(drawn[order]).split(8):
            optimizer.zero_grad()
            images = ModelInput(8)(engine.samples.data.at(chunk.numpy())[0])
            torch.nn.functional.cross_entropy(model(images), engine.samples.data.at(chunk.numpy())[1]).backward()
            optimizer.step()
    expected = engine.layout.flatten(model.state_dict())
    np.testing.assert_allclose(trained.sums["shared"].mean(40), expected, atol=1e-6)
