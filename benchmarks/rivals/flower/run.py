"""Flower (https://flower.ai): FedAvg of its message API on its simulation, which runs client apps in Ray actors.

Written after its PyTorch quickstart. As many nodes as the population has clients. A message says which client's samples its
node takes, so that cohorts are the same as elsewhere; model and data are loaded once for each actor, not for each client.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from numpy.typing import NDArray
from task import Task
from torch import nn
from turns import Turns

client = ClientApp()
server = ServerApp()


@cache
def loaded() -> tuple[Task, nn.Module]:
    torch.set_num_threads(1)
    task = Task.load(Path(os.environ["COMPARE_TASK"]))
    return task, task.model()


@client.train()
def train(message: Message, context: Context) -> Message:
    task, model = loaded()
    config = message.content["config"]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    place = config["server-round"] - 1, config["place"]
    optimizer = torch.optim.SGD(model.parameters(), lr=task.settings.learning_rate)
    images, labels = task.samples(task.train[place])
    model.train()
    size = task.settings.batch_size
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    metrics = MetricRecord({"correct": hits(task, model, task.test[place]), "num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    task, model = loaded()
    config = message.content["config"]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    index = task.test[config["server-round"] - 1, config["place"]]
    metrics = MetricRecord({"correct": hits(task, model, index), "num-examples": len(index)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


@torch.no_grad()
def hits(task: Task, model: nn.Module, index: NDArray[np.int64]) -> int:
    images, labels = task.samples(index)
    return int((model.eval()(images).argmax(-1) == labels).sum())


class OneRoundPerTurn(FedAvg):
    def __init__(self, turns: Iterable[int], fraction: float) -> None:
        super().__init__(fraction_train=fraction, fraction_evaluate=fraction)
        self._turns = iter(turns)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        next(self._turns)
        return with_places(super().configure_train(server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return with_places(super().configure_evaluate(server_round, arrays, config, grid))

    def finish(self) -> None:
        """The last round is done."""
        next(self._turns, None)


def with_places(messages: Iterable[Message]) -> list[Message]:
    """The same messages, each with its client's place in the cohort."""
    messages = list(messages)
    for place, message in enumerate(messages):
        config = ConfigRecord({**message.content["config"], "place": place})
        message.content = RecordDict({"arrays": message.content["arrays"], "config": config})
    return messages


@server.main()
def main(grid: Grid, context: Context) -> None:
    turns = Turns()
    task, model = loaded()
    settings = task.settings
    rounds = turns.rounds({"flwr": version("flwr"), "ray": version("ray"), "torch": torch.__version__})
    strategy = OneRoundPerTurn(rounds, settings.cohort / settings.num_clients)
    result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=settings.rounds)
    strategy.finish()
    turns.finish({name: tensor.numpy() for name, tensor in result.arrays.to_torch_state_dict().items()})


if __name__ == "__main__":
    settings = Task.load(Path(os.environ["COMPARE_TASK"])).settings
    cluster = {"address": "local", "num_cpus": settings.processes, "include_dashboard": False}
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=settings.num_clients,
        backend_config={"init_args": cluster, "client_resources": {"num_cpus": 1, "num_gpus": 0}},
    )
