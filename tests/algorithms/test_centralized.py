"""Centralized training: the pooled reference."""

import numpy as np
import pytest
import torch

import raysim
from raysim import seeds
from raysim.models.build import build_model
from raysim.training.transforms import ModelInput

from configs import tiny
from simulation import Simulation


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_one_model_on_pooled_data_seen_as_often_as_by_the_cohort(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = raysim.run(tiny(algorithm={"name": "centralized"}, rounds=3))
    (run,) = result.runs
    history = run.history
    assert (history[["communication/down_bytes", "communication/up_bytes"]] == 0).all(axis=None)
    # The model is evaluated after the round's training, on all test samples: so both say the same.
    np.testing.assert_allclose(history["personalized/accuracy_weighted"], history["global/accuracy"])
    assert (history["cohort/size"] == 1).all()
    assert len(run.clients) == 8
    again = raysim.run(tiny(algorithm={"name": "centralized"}, rounds=3, resources={"num_actors": 1}))
    assert again.runs[0].checksums == run.checksums


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
