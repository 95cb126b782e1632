"""Centralized training: the pooled reference."""

import numpy as np
import pytest
from conftest import tiny

import raysim

pytestmark = pytest.mark.usefixtures("cluster")


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
