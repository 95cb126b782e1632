"""pfl-research (https://github.com/apple/pfl-research): FederatedAveraging on its SimulatedBackend, a process per core.

Written after its PyTorch tutorial. Clients are evaluated as trained by a subclass (its own evaluation is on the samples
that are trained on). Its validation population, here the test samples of the cohort, is evaluated on the model that the round
started with: as much work as on the one that it ends with.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, StringMetricName, Weighted
from pfl.model.pytorch import PyTorchModel
from task import Task
from torch import Tensor, nn
from turns import Turns


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    model.train()
    return F.cross_entropy(model(images), labels)


@torch.no_grad()
def metrics(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
    model.eval()
    hits = int((model(images).argmax(-1) == labels).sum())
    return {"accuracy": Weighted(hits, len(labels))}


class EvaluatedAveraging(FederatedAveraging):
    """Evaluates each client as trained on its test samples, and not before and after on those that it trains on."""

    def simulate_one_user(self, model: Any, user_dataset: Any, central_context: Any) -> Any:
        return super().simulate_one_user(model, user_dataset, replace(central_context, do_evaluation=False))

    def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
        statistics, _ = super().train_one_user(initial_model_state, model, user_dataset, central_context)
        test = user_dataset.metadata["test"]
        return statistics, model.evaluate(test, lambda name: StringMetricName(f"{name} as trained"))


class OneRoundPerTurn(TrainingProcessCallback):
    def __init__(self, turns: Iterator[int]) -> None:
        self._turns = turns

    def on_train_begin(self, *, model: Any) -> Metrics:
        next(self._turns)
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        return next(self._turns, None) is None, Metrics()


def users(task: Task, test: bool) -> FederatedDataset:
    """The cohorts of the task, one client after another; a user's id is its round and its place in the cohort."""
    places = iter(np.ndindex(task.settings.rounds, task.settings.cohort))

    def dataset(place: tuple[int, int]) -> PyTorchTensorDataset:
        held_out = PyTorchTensorDataset(task.samples(task.test[place]))
        if test:
            return held_out
        return PyTorchTensorDataset(task.samples(task.train[place]), metadata={"test": held_out})

    return FederatedDataset(dataset, partial(next, places))


if __name__ == "__main__":
    torch.set_num_threads(1)
    turns = Turns()
    task = Task.load(turns.folder)
    settings, module = task.settings, task.model()
    module.loss, module.metrics = MethodType(loss, module), MethodType(metrics, module)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(users(task, test=False), users(task, test=True), [WeightByDatapoints()])
    rounds = turns.rounds({"pfl": version("pfl"), "torch": torch.__version__})
    EvaluatedAveraging().run(
        NNAlgorithmParams(
            settings.rounds, evaluation_frequency=1, train_cohort_size=settings.cohort, val_cohort_size=settings.cohort
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=settings.learning_rate, local_batch_size=settings.batch_size
        ),
        NNEvalHyperParams(local_batch_size=None),
        [OneRoundPerTurn(rounds)],
        send_metrics_to_platform=os.environ["RANK"] == "0",
    )
    turns.finish({name: tensor.detach().numpy() for name, tensor in module.state_dict().items()})
