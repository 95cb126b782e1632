"""Whoever follows the task of a comparison ends with raysim's parameters."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from compare import make_task, table
from task import Task

from raysim.bench import workloads
from raysim.bench.one_process import OneProcess
from raysim.config.loading import config_of
from raysim.federation.cohort import sample_cohort
from raysim.models.build import build_model
from raysim.training.engine import layout_of


def test_the_task_is_what_raysim_trains(monkeypatch, tmp_path):
    tiny = replace(
        workloads.WORKLOADS["many"], name="tiny", num_clients=6, cohort=3, num_train=7, num_test=2, batch_size=3, side=8
    )
    monkeypatch.setitem(workloads.WORKLOADS, "tiny", tiny)
    make_task("tiny", 2, 1).save(tmp_path)
    task = Task.load(tmp_path)
    assert task.settings.cohort == 3
    model, shared = task.model(), task.initial
    for round in range(2):
        total = {name: torch.zeros_like(tensor) for name, tensor in shared.items()}
        for index in task.train[round]:
            model.load_state_dict(shared)
            optimizer = torch.optim.SGD(model.parameters(), task.settings.learning_rate)
            for part in np.split(index, [3, 6]):
                images, labels = task.samples(part)
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            for name, tensor in model.state_dict().items():
                total[name] += tensor / 3
        shared = total

    config = config_of(tiny.raw, ["rounds=2", "resources.clients_per_batch=4"], "tiny")
    dataset, partition = tiny.dataset(), tiny.partition(6)
    module = build_model(config.model, config.algorithm, workloads.NUM_CLASSES, 3, config.seed)
    initial = layout_of(module, config.algorithm).flatten(module.state_dict())
    ours = OneProcess(config, module, initial, dataset.images, dataset.labels, partition)
    for round in range(2):
        ours.round(round, [sample_cohort(config, round)])
    found = ours.engine.layout.unflatten(ours.shared)
    assert found.keys() == shared.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, shared[name], atol=1e-6)
    np.testing.assert_array_equal(task.test[1, 0], partition.test(sample_cohort(config, 1)[0]))


def test_the_table_has_a_row_for_each_side_with_its_ratio_to_raysim():
    row = {"versions": {"x": "1"}, "cpu_seconds": [1.0], "private_mb": 1000.0, "difference": None}
    sides = {
        "raysim": row | {"seconds": [1.0, 2.0, 4.0]},
        "other": row | {"seconds": [3.0, 2.0, 8.0], "difference": 2e-7},
    }
    lines = table({"workload": "many", "rounds": 3, "processes": 2, "sides": sides}).splitlines()
    assert lines[-2:] == [
        "| raysim | x 1 | 2.00 | 1.0 | 1.00 | 1,000 | – |",
        "| other | x 1 | 3.00 | 2.0 | 1.00 | 1,000 | 2e-07 |",
    ]
