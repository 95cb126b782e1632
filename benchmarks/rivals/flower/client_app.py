"""What Flower's Ray actors run: an app that they import, since ``__main__`` is another module there."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from task import Task
from torch import nn

client = ClientApp()


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
