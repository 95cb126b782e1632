"""A client's model in MLflow."""

import os
import subprocess
import sys

import mlflow
import numpy as np
import pytest
import torch
from mlflow.tracking import is_tracking_uri_set
from torch import nn

from raysim.errors import ConfigError
from raysim.plugins.registry import PLUGINS
from raysim.tracking import logged_model
from raysim.tracking.logged_model import log_model
from raysim.tracking.mlflow_store import MLflowStore

LOAD = """
import sys
sys.modules["raysim"] = sys.modules["timm"] = None
import mlflow, numpy as np, torch
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model(sys.argv[2])
np.save("logits.npy", model(torch.from_numpy(np.load("images.npy"))).detach().numpy())
"""


@pytest.fixture
def finished(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    store = MLflowStore(uri, "experiment")
    run_id = store.start("mine", {}, {})
    store.end(run_id, "FINISHED")
    return uri, run_id


@pytest.mark.slow
@pytest.mark.skipif(
    "serialization_format" not in logged_model.inspect.signature(mlflow.pytorch.log_model).parameters,
    reason="MLflow < 3.11",
)
def test_it_loads_where_neither_raysim_nor_timm_is(finished, tmp_path):
    import timm

    uri, run_id = finished
    kwargs = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", img_size=8, num_classes=3, in_chans=1, **kwargs)
    PLUGINS["prefix"].add(model, 4, 1.0, None)
    before = mlflow.MlflowClient(uri).get_run(run_id).info
    images = np.random.default_rng(0).random((5, 1, 8, 8), np.float32)
    environment = dict(os.environ)
    address = log_model(uri, run_id, "client-7", model, images[:2])
    changed = {name for name, value in os.environ.items() if environment.get(name) != value}
    assert changed <= {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"}  # no later run of this process goes to another store
    assert not is_tracking_uri_set()
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert (run.info.status, run.info.end_time) == (before.status, before.end_time)
    assert [f"models:/{output.model_id}" for output in run.outputs.model_outputs] == [address]
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", LOAD, uri, address], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-5)


def test_what_can_not_be_logged_is_told(finished, monkeypatch):
    uri, run_id = finished

    class Odd(nn.Module):
        def forward(self, x):
            return x if x.mean() > 0 else -x

    images = np.ones((2, 3), np.float32)
    if "serialization_format" in logged_model.inspect.signature(mlflow.pytorch.log_model).parameters:
        with pytest.raises(ConfigError, match="--log: the model can't be logged to run"):
            log_model(uri, run_id, "odd", Odd(), images)
        assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
        with pytest.raises(ConfigError, match="--log: the model can't be logged to run nobody"):
            log_model(uri, "nobody", "odd", Odd(), images)
    monkeypatch.setattr(mlflow.pytorch, "log_model", lambda model, name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mlflow>=3.11'"):
        log_model(uri, run_id, "odd", Odd(), images)
