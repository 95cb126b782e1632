"""A client's model as a LoggedModel of MLflow, which loads where neither raysim nor timm is installed."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raysim.errors import ConfigError
from raysim.tracking.mlflow_store import check_store


def log_model(uri: str, run_id: str, name: str, model: nn.Module, inputs: NDArray[np.float32]) -> str:
    """Log a model to the run that it comes from; returns its address, for ``mlflow.pytorch.load_model``.

    It is saved by ``torch.export``, as a graph for any number of images, and not as a pickle.

    Args:
        inputs: (2, C, H, W) an example, as the model takes it.

    Raises:
        ConfigError: MLflow is older than 3.11; there is no such store or run; torch can't export the model.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import infer_signature

    if "serialization_format" not in inspect.signature(mlflow.pytorch.log_model).parameters:
        raise ConfigError(f"--log: MLflow {mlflow.__version__} can't keep such models: pip install 'mlflow>=3.11'")
    check_store(uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    client = mlflow.MlflowClient(uri)
    try:
        ended = client.get_run(run_id).info
        with torch.no_grad():
            outputs = model.eval()(torch.from_numpy(inputs)).numpy()
        with _tracking_to(uri):
            try:
                with mlflow.start_run(run_id=run_id):
                    info = mlflow.pytorch.log_model(
                        model,
                        name=name,
                        input_example=inputs,
                        signature=infer_signature(inputs, outputs),
                        serialization_format="pt2",
                        pip_requirements=[f"torch>={torch.__version__.partition('+')[0]}"],
                    )
            finally:
                client.set_terminated(run_id, ended.status, ended.end_time)  # as before it was opened again
    except (
        MlflowException,
        RuntimeError,
        ValueError,
    ) as error:  # of torch.export, which has no class for all of its own
        raise ConfigError(f"--log: the model can't be logged to run {run_id} in {uri}: {error}") from error
    address: str = info.model_uri
    return address


@contextmanager
def _tracking_to(uri: str) -> Iterator[None]:
    """MLflow's own store of this process, for a while. MLflow writes it into the environment, where it would stay."""
    import mlflow
    from mlflow.tracking import is_tracking_uri_set

    before = mlflow.get_tracking_uri() if is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
