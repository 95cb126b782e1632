"""Flower (https://flower.ai): FedAvg of its message API on its simulation, which runs client apps in Ray actors.

Written after its PyTorch quickstart. As many nodes as the population has clients. A message says which client's samples its
node takes, so that cohorts are the same as elsewhere; model and data are loaded once for each actor, not for each client.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from client_app import client, loaded
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from task import Task
from turns import Turns

server = ServerApp()


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

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        return super().aggregate_train(server_round, all_good(replies))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return super().aggregate_evaluate(server_round, all_good(replies))

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


def all_good(replies: Iterable[Message]) -> list[Message]:
    """The same replies; Flower itself goes on without clients that failed, even if all did."""
    replies = list(replies)
    for reply in replies:
        if reply.has_error():
            raise RuntimeError(f"a client failed: {reply.error.reason}")
    return replies


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
