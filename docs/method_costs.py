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

from raysim.bench.one_process import OneProcess
from raysim.config.loading import children, load_config
from raysim.data.loading import load_data
from raysim.experiments.preparation import prepare_run
from raysim.models.build import build_model

STUDY = Path(__file__).absolute().parent.parent / "yaml" / "methods" / "digits.yaml"
REPEATS = 7


class Rounds(OneProcess):
    """Rounds of one client batch with a method."""

    def __init__(self, entry, config, cache):
        run = prepare_run(entry, config.model_copy(update={"study": None}), *load_data(config, cache))
        data = run.dataset
        model = build_model(run.config.model, config.algorithm, data.num_classes, data.images.shape[3], config.seed)
        model.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in run.frozen.items()}, strict=False)
        initial = torch.from_numpy(run.initial)
        super().__init__(run.config, model, initial, data.images, data.labels, run.partition)
        self.clients = np.arange(1 if config.algorithm.pooled else 4)
        for number in range(2):
            self.round(number, [self.clients], evaluate=False)

    def third(self):
        self.train(2, self.clients, evaluate=False)

    def evaluate(self):
        messages = self.server.messages(2, self.clients)
        self.engine.evaluate(2, self.clients, self.broadcast, self.states[self.clients], messages=messages)


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
        training = [seconds(one.third) / seconds(base.third) for _ in range(REPEATS)]
        evaluation = [seconds(one.evaluate) / seconds(fedper.evaluate) for _ in range(REPEATS)]
        print(f"| {name} | {statistics.median(training):.2f} | {statistics.median(evaluation):.1f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
