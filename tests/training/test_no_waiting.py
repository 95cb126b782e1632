"""Local training on torch's ``meta`` device, which has shapes and no numbers.

On a GPU, a step that asks for a number waits until all before it is done, and a tensor left on the CPU is an error. Both are
errors on ``meta``, too: ``.item()``, ``.cpu()``, a branch on a tensor, operations on tensors of two devices.
"""

from functools import cache

import numpy as np
import pytest
import torch

from raysim.algorithms import ALGORITHMS
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.models.build import build_model
from raysim.plugins.registry import PLUGINS
from raysim.training import evaluation, local_training
from raysim.training.aggregation import Weights
from raysim.training.algorithm_server import AlgorithmServer
from raysim.training.engine import ClientEngine, layout_of
from raysim.training.local_training import LocalTraining

from configs import tiny

META = torch.device("meta")


@cache
def data():
    config = tiny()
    dataset = load_dataset(config.data, 8)
    return dataset, make_partition(config.data, dataset, 0)


def on_meta(changes):
    """An engine on the meta device, what the server sends, what clients keep, and what is sent to each."""
    config, (dataset, partition) = tiny(**changes), data()
    model = build_model(config.model, config.algorithm, 10, 1, 0)
    layout = layout_of(model, config.algorithm)
    initial = layout.flatten(model.state_dict())
    engine = ClientEngine(config, model, initial, dataset.images, dataset.labels, partition, "meta")
    server = AlgorithmServer(config, layout, initial, partition.num_train)
    messages = {name: rows[0] for name, rows in server.messages(0, np.zeros(1, np.int64)).items()}
    state, sent = config.algorithm.client_state(initial, layout), server.sent()
    return engine, *({n: t.to(META) for n, t in tensors.items()} for tensors in (sent, state, messages))


def train(engine, broadcast, state, message, clients):
    equal = Weights(np.ones(len(clients), np.int64), len(clients))
    pooled = np.arange(20) if engine.algorithm.pooled else None
    weights = {"samples": equal, "uniform": equal}
    messages = {name: vector.expand(len(clients), -1) for name, vector in message.items()}
    training = LocalTraining(0, clients, weights, 2, messages, pooled=pooled, steps_per_epoch=2)
    context = engine._context(0, broadcast)
    rows = {name: vector.expand(len(clients), -1) for name, vector in state.items()}
    with torch.no_grad(), engine._model.mode(training=True, vectorised=len(clients) > 1):
        result = engine._trainer.train(training, context, rows)
        for tensor in (*result.uploads.values(), *result.states.values(), *result.metrics.values()):
            assert tensor.is_meta
    if not engine.algorithm.adapt_steps():
        state = {**result.states, **messages}
        predictor = engine._evaluator.predictor(clients, result.uploads["shared"], state, context)
        assert predictor.scores(torch.empty(len(clients), 2, 1, 8, 8, device=META)).shape == (len(clients), 2, 10)


@pytest.mark.parametrize(
    "changes",
    [
        *({"autograd": True, "algorithm": {"name": name}} for name in ("fedavg", "fedperfix", "perfedavg", "fedcp")),
        *({"algorithm": {"name": name}} for name in ALGORITHMS if name != "fedperfix"),
        *({"algorithm": {"name": "fedperfix", "plugin": plugin}} for plugin in PLUGINS),
        {"algorithm": {"name": "fedperfix", "plugin": "lora", "personal": ["head"], "freeze_backbone": True}},
        {"algorithm": {"name": "perfedavg", "hessian_free": True}},
        {"train": {"optimizer": {"name": "adamw", "clip_norm": 0.5}}},
        {"data": {"augment": "crop_flip"}},
        {"model": {"kwargs": {"qk_norm": True, "reg_tokens": 1, "drop_path_rate": 0.1, "proj_drop_rate": 0.1}}},
    ],
    ids=str,
)
def test_no_local_step_waits_for_a_number(changes, monkeypatch):
    def everything(algorithm, each, state, phases, context):  # is asked before the first step, and may wait
        return np.ones((each.num_clients, len(phases)), np.bool_)

    monkeypatch.setattr(local_training, "takes_part", everything)
    monkeypatch.setattr(evaluation, "takes_part", everything)
    changes = dict(changes)
    general = changes.pop("autograd", False)
    engine, *tensors = on_meta(changes)
    if general:
        engine._model._written = None
    for clients in ([0], [0, 1, 2]):
        train(engine, *tensors, np.array(clients[:1] if engine.algorithm.pooled else clients))
