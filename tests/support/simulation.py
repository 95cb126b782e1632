"""Rounds in this process, without Ray: what the driver and the actors do, one round at a time."""

import numpy as np
import torch

from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.functional.context import ServerContext
from raysim.models.build import build_model
from raysim.training.aggregation import PartialSum, Weights, combine, mean_uploads
from raysim.training.engine import ClientEngine, layout_of
from raysim.training.local_training import LocalTraining

from configs import tiny


class Simulation:
    """One round at a time, in this process; what the driver and the actors do, without them."""

    def __init__(self, **changes):
        self.config = tiny(**changes)
        dataset = load_dataset(self.config.data, self.config.model.image_size)
        partition = make_partition(self.config.data, dataset, 0, self.config.evaluate.new_clients)
        self.algorithm = self.config.algorithm
        model = build_model(self.config.model, self.algorithm, 10, 1, 0)
        layout = layout_of(model, self.algorithm)
        self.initial = layout.flatten(model.state_dict())
        self.engine = ClientEngine(self.config, model, self.initial, dataset.images, dataset.labels, partition, "cpu")
        self.shared = layout.split(self.initial)[0].clone()
        self.server_state = self.algorithm.server_init(self.shared, layout)
        self.states = np.tile(self.engine.initial_state, (self.config.data.num_clients, 1))

    @property
    def broadcast(self):
        return self.algorithm.broadcast(self.shared, self.server_state)

    def train(self, round_, clients, weights=None, messages=None, **options):
        """Train clients together, with equal weights unless others are given; nothing is kept of it."""
        equal = Weights(np.ones(len(clients), np.int64), len(clients))
        epochs = options.pop("local_epochs", self.config.train.local_epochs)
        own = weights or {"samples": equal, "uniform": equal}
        training = LocalTraining(round_, clients, own, epochs, messages or {}, **options)
        return self.engine.train(training, self.broadcast, self.states[clients])

    def round(self, round_, groups):
        """Train client batches as one cohort, take the server step, keep the states; returns what was trained."""
        cohort = np.concatenate(groups)
        sizes, parts, trained = self.engine.partition.num_train, PartialSum(round_), []
        messages = {}
        if self.algorithm.reads_cohort_states:
            rows = self.engine.state_layout.unpack(torch.from_numpy(self.states[np.sort(cohort)]))
            messages = self.algorithm.server_messages(rows)
        for i, group in enumerate(map(np.array, groups)):
            total, ones = int(sizes[cohort].sum()), np.ones(len(group), np.int64)
            weights = {"samples": Weights(sizes[group], total), "uniform": Weights(ones, len(cohort))}
            rows = {k: v[np.searchsorted(np.sort(cohort), group)] for k, v in messages.items()}
            trained.append(self.train(round_, group, weights, rows))
            parts.add(i, trained[-1].sums)
        sums = combine([parts], round_, set(range(len(groups))))
        means = mean_uploads(self.algorithm, sums)
        if means:
            shared, self.server_state = self.algorithm.server_step(
                self.shared, self.server_state, means, ServerContext(self.engine.layout, round_, len(cohort), 8)
            )
            self.shared = shared.float()
        for result in trained:
            self.states[result.clients] = result.states
        return trained
