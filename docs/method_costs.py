"""What local training and evaluation of every method cost, relative to FedAvg: the column of docs/methods.md.

    python docs/method_costs.py [STUDY] [METHOD ...]        default: yaml/methods/digits.yaml, all its entries

One thread, one client batch of four clients, in this process: two rounds to get going (FedALA's first merge is in the
second), then the third round again and again, in turn with FedAvg's. The median of the ratios is printed. Evaluation is
relative to FedPer's, as FedAvg's clients are evaluated with one model.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from raysim.config.loading import children, load_config
from raysim.data.loading import load_data
from raysim.experiments.preparation import prepare_run
from raysim.federation.server import stepped
from raysim.functional.context import ServerContext
from raysim.models.build import build_model
from raysim.training.aggregation import PartialSum, Weights, combine, mean_uploads
from raysim.training.engine import ClientEngine
from raysim.training.local_training import LocalTraining

STUDY = Path(__file__).absolute().parent.parent / "yaml" / "methods" / "digits.yaml"
CLIENTS, REPEATS = np.arange(4), 7


class Rounds:
    """Rounds of one client batch with a method."""

    def __init__(self, entry, config, cache):
        run = prepare_run(entry, config.model_copy(update={"study": None}), *load_data(config, cache))
        data, algorithm = run.dataset, config.algorithm
        model = build_model(run.config.model, algorithm, data.num_classes, data.images.shape[3], config.seed)
        initial = torch.from_numpy(run.initial)
        self.algorithm, self.clients = algorithm, CLIENTS[:1] if algorithm.pooled else CLIENTS
        self.engine = ClientEngine(run.config, model, initial, data.images, data.labels, run.partition, "cpu")
        self.shared = run.layout.split(initial)[0].clone()
        self.state = algorithm.server_init(self.shared, run.layout)
        self.states = np.tile(self.engine.initial_state, (len(self.clients), 1))
        for number in range(2):
            trained = self.train(number)
            sums = PartialSum(number)
            sums.add(0, trained.sums)
            means = mean_uploads(algorithm, combine([sums], number, {0}))
            context = ServerContext(run.layout, number, len(self.clients), config.data.num_clients)
            self.shared, self.state = stepped(algorithm, self.shared, self.state, means, context)
            self.states = trained.states

    def train(self, number=2):
        ones = Weights(np.ones(len(self.clients), np.int64), len(self.clients))
        epochs, weights = self.engine.config.train.local_epochs, {"samples": ones, "uniform": ones}
        training = LocalTraining(number, self.clients, weights, epochs, evaluate=False)
        return self.engine.train(training, self.algorithm.broadcast(self.shared, self.state), self.states)

    def evaluate(self):
        self.engine.evaluate(2, self.clients, self.algorithm.broadcast(self.shared, self.state), self.states)


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(arguments):
    torch.set_num_threads(1)
    path = Path(arguments[0]) if arguments else STUDY
    found = dict(reversed(children(load_config(path))))  # the first seed of each
    cache = {}
    fedavg, fedper = (Rounds(name, found[name], cache) for name in ("fedavg", "fedper"))
    print("| method | training | evaluation |\n|---|---:|---:|")
    for name in arguments[1:] or sorted(n for n, config in found.items() if not config.algorithm.pooled):
        base = Rounds("fedavg sgd", found["fedavg sgd"], cache) if name.endswith(" sgd") else fedavg
        one = Rounds(name, found[name], cache)
        training = [seconds(one.train) / seconds(base.train) for _ in range(REPEATS)]
        evaluation = [seconds(one.evaluate) / seconds(fedper.evaluate) for _ in range(REPEATS)]
        print(f"| {name} | {statistics.median(training):.2f} | {statistics.median(evaluation):.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
