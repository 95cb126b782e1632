"""Rounds in this process, without Ray, of the tiny configuration."""

import numpy as np
import torch

from raysim.bench.one_process import OneProcess
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.models.build import build_model
from raysim.training.engine import layout_of

from configs import tiny


class Simulation(OneProcess):
    """One round at a time; ``changes`` are merged into the tiny configuration."""

    def __init__(self, **changes):
        config = tiny(**changes)
        dataset = load_dataset(config.data, config.model.image_size)
        partition = make_partition(config.data, dataset, 0, config.evaluate.new_clients)
        model = build_model(config.model, config.algorithm, 10, 1, 0)
        initial = layout_of(model, config.algorithm).flatten(model.state_dict())
        super().__init__(config, model, initial, dataset.images, dataset.labels, partition)

    def state(self, client):
        """What a client keeps, and is sent for itself, by name."""
        kept = self.engine.state_layout.unpack(torch.from_numpy(self.states[client]))
        sent = self.server.messages(self.config.rounds, np.array([client]))
        return {**kept, **{name: rows[0] for name, rows in sent.items()}}
