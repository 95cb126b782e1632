"""FL-bench's way (https://github.com/KarhouTam/FL-bench, read at commits 641881b and 1c5cbe3), in its parallel mode.

FL-bench can't be installed by pip, and its own data sets and models are not these, so its steps are written again here for
FedAvg: a Ray actor per core trains a client per call; the server copies its parameters and puts them into the object store
for every client; samples come one by one from a ``Subset`` through a transform and a ``DataLoader``; a client is evaluated on
its test samples before and after training and returns its parameters; the server stacks all of them for the mean.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import ray
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from task import Task
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from turns import Turns

Parameters = OrderedDict[str, Tensor]


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """All images in memory as numbers between 0 and 1, normalised one by one when they are asked for."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.data = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
        self.targets = torch.from_numpy(labels.copy())
        self.data_transform = transforms.Compose([transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data_transform(self.data[index]), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


class Client:
    """One for each actor, which is every client in turn."""

    def __init__(self, model: nn.Module, dataset: Samples, learning_rate: float, batch_size: int) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
        self.init_optimizer_state = deepcopy(self.optimizer.state_dict())
        self.trainset, self.testset = Subset(dataset, [0]), Subset(dataset, [])
        # Not shuffled: its samples arrive in the order in which every side trains on them.
        self.trainloader = DataLoader(self.trainset, batch_size=batch_size)
        self.testloader = DataLoader(self.testset, batch_size=batch_size)
        self.criterion = nn.CrossEntropyLoss()

    def train(self, package: dict[str, Any]) -> dict[str, Any]:
        self._set(package)
        before = self._evaluate()
        self.model.train()
        for x, y in self.trainloader:
            loss = self.criterion(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        parameters = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return {
            "weight": len(self.trainset),
            "eval_results": {"before": before, "after": self._evaluate()},
            "regular_model_params": parameters,
            "optimizer_state": deepcopy(self.optimizer.state_dict()),
        }

    def test(self, package: dict[str, Any]) -> dict[str, float]:
        self._set(package)
        return self._evaluate()

    def _set(self, package: dict[str, Any]) -> None:
        self.trainset.indices, self.testset.indices = package["train"], package["test"]
        self.optimizer.load_state_dict(self.init_optimizer_state)
        self.model.load_state_dict(package["regular_model_params"], strict=False)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        loss = correct = 0.0
        for x, y in self.testloader:
            logits = self.model(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += (logits.argmax(-1) == y).sum().item()
        return {"loss": loss, "correct": correct, "size": len(self.testset)}


class Server:
    def __init__(self, task: Task) -> None:
        self.task, settings, model = task, task.settings, task.model()
        self.parameters: Parameters = OrderedDict((n, p.detach().clone()) for n, p in model.state_dict().items())
        shared = ray.put(model), ray.put(Samples(task.images, task.labels))
        actor: Any = ray.remote(Client).options(num_cpus=1)
        self.workers = [
            actor.remote(*shared, settings.learning_rate, settings.batch_size) for _ in range(settings.processes)
        ]

    def round(self, round: int) -> None:
        places = range(self.task.settings.cohort)
        packages = self._each("train", round, places)
        self._aggregate([packages[place] for place in places])
        self._each("test", round, places)

    def _package(self, round: int, place: int) -> dict[str, Any]:
        return {
            "regular_model_params": deepcopy(self.parameters),
            "train": self.task.train[round, place].tolist(),
            "test": self.task.test[round, place].tolist(),
        }

    def _each(self, method: str, round: int, places: Sequence[int]) -> dict[int, Any]:
        """A call for each client, to whichever worker is idle."""
        waiting, idle = deque(places), deque(self.workers)
        running: dict[Any, tuple[int, Any]] = {}
        results = {}
        while waiting or running:
            while waiting and idle:
                place, worker = waiting.popleft(), idle.popleft()
                call = getattr(worker, method).remote(ray.put(self._package(round, place)))
                running[call] = place, worker
            for done in ray.wait(list(running))[0]:
                place, worker = running.pop(done)
                results[place] = ray.get(done)
                idle.append(worker)
        return results

    @torch.no_grad()
    def _aggregate(self, packages: list[dict[str, Any]]) -> None:
        sizes = torch.tensor([package["weight"] for package in packages])
        weights = sizes / sizes.sum()
        for name in self.parameters:
            stacked = torch.stack([package["regular_model_params"][name] for package in packages], dim=-1)
            self.parameters[name] = torch.sum(stacked * weights, dim=-1)


if __name__ == "__main__":
    turns = Turns()
    task = Task.load(turns.folder)
    ray.init(address="local", num_cpus=task.settings.processes, include_dashboard=False)
    server = Server(task)
    for round in turns.rounds({"ray": ray.__version__, "torch": torch.__version__}):
        server.round(round)
    turns.finish({name: tensor.numpy() for name, tensor in server.parameters.items()})
