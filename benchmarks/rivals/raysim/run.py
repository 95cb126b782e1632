"""raysim: a round of ``raysim bench``, with its metrics and its logging to MLflow."""

import ray
import torch
from task import Task
from turns import Turns

from raysim.bench.stepped_driver import driven
from raysim.bench.workloads import WORKLOADS
from raysim.version import __version__

if __name__ == "__main__":
    turns = Turns()
    settings = Task.load(turns.folder).settings
    overrides = [f"resources.num_actors={settings.processes}", "resources.device=cpu"]
    # One round more than are run: the last one would evaluate all clients.
    with driven(WORKLOADS[settings.workload], overrides, settings.rounds + 1) as run:
        for round in turns.rounds({"raysim": __version__, "ray": ray.__version__, "torch": torch.__version__}):
            run.round(round)
        shared = torch.tensor(ray.get(run.actor.shared.remote()))
        turns.finish({name: tensor.numpy() for name, tensor in run.run.layout.unflatten(shared).items()})
