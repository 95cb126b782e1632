"""Rounds in this process, without Ray: what the driver and the actors do, one round at a time."""

import numpy as np
import torch

from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.federation.server import stepped
from raysim.functional.context import ServerContext
from raysim.models.build import build_model
from raysim.training.aggregation import PartialSum, Weights, combine, mean_uploads
from raysim.training.engine import ClientEngine, layout_of
from raysim.training.local_training import LocalTraining

from configs import tiny


class Simulation:
    """One round at a time, in this process; what the driver and the actors do, without them."""

    def __init__(self, **changes):
        config = tiny(**changes)
        dataset = load_dataset(config.data, config.model.image_size)
        partition = make_partition(config.data, dataset, 0, config.evaluate.new_clients)
        model = build_model(config.model, config.algorithm, 10, 1, 0)
        initial = layout_of(model, config.algorithm).flatten(model.state_dict())
        self.start(config, model, initial, dataset.images, dataset.labels, partition)

    def start(self, config, model, initial, images, labels, partition):
        """A run before its first round, for initial parameters (P,)."""
        self.config, self.algorithm, self.initial = config, config.algorithm, initial
        self.engine = ClientEngine(config, model, initial, images, labels, partition, "cpu")
        self.shared = self.engine.layout.split(initial)[0].clone()
        self.server_state = self.algorithm.server_init(self.shared, self.engine.layout)
        self.states = np.tile(self.engine.initial_state, (config.data.num_clients, 1))

    @property
    def broadcast(self):
        return self.algorithm.broadcast(self.shared, self.server_state)

    def state(self, client):
        """What a client keeps, by name."""
        return self.engine.state_layout.unpack(torch.from_numpy(self.states[client]))

    def train(self, round_, clients, weights=None, messages=None, **options):
        """Train clients together, with equal weights unless others are given; nothing is kept of it."""
        equal = Weights(np.ones(len(clients), np.int64), len(clients))
        epochs = options.pop("local_epochs", self.config.train.local_epochs)
        own = weights or {"samples": equal, "uniform": equal}
        training = LocalTraining(round_, clients, own, epochs, messages or {}, **options)
        return self.engine.train(training, self.broadcast, self.states[clients])

    def prepare(self):
        """All clients train for the server alone, before round 0."""
        everyone = np.arange(self.config.data.num_clients)
        size = self.config.resources.clients_per_batch
        _, means = self._means(0, np.split(everyone, everyone[size::size]), prepare=True, evaluate=False)
        self.server_state = self.algorithm.server_prepare(self.server_state, means)

    def round(self, round_, groups, **options):
        """Train client batches as one cohort, take the server step, keep the states; returns what was trained."""
        trained, means = self._means(round_, groups, **options)
        if means:
            context = ServerContext(self.engine.layout, round_, sum(map(len, groups)), self.config.data.num_clients)
            self.shared, self.server_state = stepped(self.algorithm, self.shared, self.server_state, means, context)
        for result in trained:
            self.states[result.clients] = result.states
        return trained

    def _means(self, round_, groups, **options):
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
            trained.append(self.train(round_, group, weights, rows, **options))
            parts.add(i, trained[-1].sums)
        return trained, mean_uploads(self.algorithm, combine([parts], round_, set(range(len(groups)))))
