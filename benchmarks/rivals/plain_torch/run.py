"""The loop in plain torch of ``raysim bench``: no framework, one process per core, nothing logged."""

import torch
from task import Task
from turns import Turns

from raysim.bench.plain import PlainLoop
from raysim.bench.workloads import WORKLOADS
from raysim.config.loading import config_of
from raysim.functional.parameters import ParameterLayout

if __name__ == "__main__":
    turns = Turns()
    task = Task.load(turns.folder)
    settings, workload = task.settings, WORKLOADS[task.settings.workload]
    config = config_of(workload.raw, [f"rounds={settings.rounds + 1}", "resources.device=cpu"], settings.workload)
    layout = ParameterLayout.of(task.model(), config.algorithm.personal_patterns())
    initial = torch.cat([task.initial[name].flatten() for name in layout.names])
    partition = workload.partition(settings.num_clients)
    with PlainLoop(config, workload.dataset(), partition, *layout.split(initial), settings.processes) as loop:
        for round in turns.rounds({"torch": torch.__version__}):
            loop.round(round)
        turns.finish({name: tensor.numpy() for name, tensor in layout.unflatten(loop.shared).items()})
