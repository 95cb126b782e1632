"""Resolves ``clients_per_batch: auto`` and ``num_gpus_per_actor: auto`` on a GPU, by the memory of a trial step.

The choice is made once, before round 0, and written into the resolved configuration; rerunning that gives the same bits.
"""

from __future__ import annotations

import gc

import ray
import torch

from raysim.own_code import OwnCode
from raysim.training.step_memory import Choice, choose, peak_bytes
from raysim.workers.client_actor import make_engine
from raysim.workers.run_setup import RunSetup


@ray.remote(max_restarts=0, max_task_retries=0)
class TrialActor:
    """Takes a whole GPU for the trial steps of a study's runs, then ends."""

    def __init__(self, code: OwnCode) -> None:
        code.install()
        torch.set_num_threads(1)

    def choose(self, setup: RunSetup, asked: int | None, batches: int) -> Choice:
        """The largest client batch that fits on this GPU and leaves so many per round, and how many actors (``choose``)."""
        gc.collect()  # the engine of the trial before
        engine = make_engine(setup)
        total = torch.cuda.get_device_properties(engine.device).total_memory
        return choose(lambda k: peak_bytes(engine, k), total, setup.config.cohort_size, batches, asked)
