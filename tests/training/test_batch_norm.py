"""Convolutional models: running statistics are parameters of their client, and clients train one by one."""

import copy

import numpy as np
import pytest
import torch

from raysim import seeds
from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare
from raysim.functional.batch import Batch
from raysim.models.build import build_model
from raysim.training.transforms import ModelInput

from configs import tiny
from simulation import Simulation

RESNET = {
    "name": "resnet50",
    "image_size": 8,
    "kwargs": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 4], "stem_width": 4},
}
ALONE = [[0], [1]]


def simulation(**changes):
    # Normalising over 8 samples of one pixel amplifies rounding: a small learning rate keeps two ways of computing together.
    train = {"local_epochs": 2, "optimizer": {"lr": 0.001}}
    fixed = {"algorithm": {"name": "fedavg"}, "resources": {"clients_per_batch": 1}, "model": RESNET, "train": train}
    changes = fixed | changes
    return Simulation(**changes)


def plain_training(engine, config, client):
    """The same client in plain torch: its own module with its own buffers."""
    model = build_model(config.model, config.algorithm, 10, 1, 0).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.001)
    index = engine.partition.train(client)
    rng = seeds.stream(0, "batches", 0, client)
    for order in rng.permuted(np.tile(np.arange(len(index)), (2, 1)), axis=1):
        for chunk in torch.from_numpy(index[order]).split(8):
            if len(chunk) == 1:
                continue
            images = ModelInput(8)(engine.samples.data.at(chunk.numpy())[0])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), engine.samples.data.at(chunk.numpy())[1]).backward()
            optimizer.step()
    return model


def test_statistics_are_averaged_like_parameters_and_do_not_leak_between_clients():
    s = simulation()
    engine, sizes = s.engine, s.engine.partition.num_train[:2]
    assert "bn1.running_var" in engine.layout.names
    s.round(0, ALONE)
    expected = sum(
        engine.layout.flatten(plain_training(engine, s.config, client).state_dict()).double()
        * sizes[client]
        / sizes.sum()
        for client in (0, 1)
    )
    np.testing.assert_allclose(s.shared, expected, atol=2e-5)
    moved = engine.layout.mask(["running_mean"])
    assert not torch.equal(s.shared[moved], s.initial[moved])


@pytest.mark.parametrize("optimizer", [{"name": "adamw", "lr": 0.01}, {"momentum": 0.9, "weight_decay": 0.1}], ids=str)
def test_no_optimiser_touches_statistics(optimizer):
    s = simulation(train={"optimizer": optimizer, "local_epochs": 1, "batch_size": 400})
    s.round(0, [[0]])
    plain = build_model(s.config.model, s.config.algorithm, 10, 1, 0).train()
    plain(ModelInput(8)(s.engine.samples.data.at(s.engine.partition.train(0))[0]))
    ours = s.engine.layout.unflatten(s.shared)
    for name in s.engine.layout.statistics:
        np.testing.assert_allclose(ours[name], plain.state_dict()[name], atol=1e-5)


def test_statistics_can_be_personal():
    s = simulation(algorithm={"name": "fedper", "personal": ["running_mean", "running_var"]})
    s.round(0, ALONE)
    for client in (0, 1):
        trained = plain_training(s.engine, s.config, client).state_dict()
        kept = s.engine.layout.unflatten(torch.cat([s.shared, torch.from_numpy(s.states[client])]))
        np.testing.assert_allclose(kept["bn1.running_var"], trained["bn1.running_var"], atol=2e-5)
    assert not np.array_equal(s.states[0], s.states[1])


def test_evaluation_leaves_no_trace_and_uses_the_statistics():
    s = simulation(algorithm={"name": "fedbabu"})
    before, theta = s.shared.clone(), s.broadcast["shared"]
    first = s.engine.evaluate(0, np.array([0]), s.broadcast, s.states[:1])
    again = s.engine.evaluate(0, np.array([0]), s.broadcast, s.states[:1])
    assert np.array_equal(first.probabilities, again.probabilities)
    assert torch.equal(s.shared, before)
    other = theta.clone()
    other[s.engine.layout.mask(["running_var"])] *= 9
    changed = s.engine._evaluator.one_model(np.array([0]), other)
    assert not np.allclose(changed.probabilities, s.engine._evaluator.one_model(np.array([0]), theta).probabilities)


@pytest.mark.parametrize("name", ["fedper", "fedrep", "fedbabu", "perfedavg", "apfl"])
def test_methods_that_speak_of_the_head_find_it_in_a_resnet(name):
    s = simulation(algorithm={"name": name}, train={"batch_size": 5})
    s.round(0, ALONE)
    head = s.engine.layout.mask(["head"])
    assert int(head.sum()) == 10 * 16 + 10
    assert torch.isfinite(s.shared).all()
    if name in ("fedper", "fedrep"):
        assert s.engine.layout.num_personal == int(head.sum())


def test_clients_train_one_by_one():
    config = {"algorithm": {"name": "fedavg"}, "model": RESNET}
    assert prepare(tiny(**config, resources={"clients_per_batch": "auto"}))[0].config.resources.clients_per_batch == 1
    with pytest.raises(
        ConfigError, match=r"resources.clients_per_batch: resnet50 has BatchNorm .* take 1 or auto, not 4"
    ):
        prepare(tiny(**config, resources={"clients_per_batch": 4}))
    with pytest.raises(ConfigError, match="resources.compile: the training of BatchNorm layers .* is not compiled"):
        prepare(tiny(**config, resources={"clients_per_batch": 1, "compile": True}))


def test_a_client_of_one_sample_is_refused(tmp_path):
    split = {
        f"{s}_{i}": np.array([10 * i + k for k in range(n)]) for i in range(8) for s, n in (("train", 4), ("test", 0))
    }
    split |= {f"test_{i}": np.array([10 * i + 9]) for i in range(8)} | {"train_3": np.array([30])}
    np.savez(tmp_path / "split.npz", **split)
    data = {"partition": {"name": "file", "path": str(tmp_path / "split.npz")}}
    with pytest.raises(ConfigError, match="data: client 3 has 1 training samples, and fedavg needs 2"):
        prepare(tiny(algorithm={"name": "fedavg"}, model=RESNET, data=data, resources={"clients_per_batch": 1}))


def test_a_batch_of_one_sample_is_refused():
    config = {
        "algorithm": {"name": "fedavg"},
        "model": RESNET,
        "train": {"batch_size": 1},
        "resources": {"clients_per_batch": 1},
    }
    with pytest.raises(
        ConfigError, match=r"train.batch_size: the BatchNorm layers of resnet50 can't .* take 2 or more"
    ):
        prepare(tiny(**config))


@pytest.mark.parametrize("count", [16, 10, 9, 8, 7, 6])
def test_per_fedavg_pairs_of_a_resnet_are_those_of_plain_torch(count):
    s = simulation(algorithm={"name": "perfedavg"})
    engine = s.engine
    context = engine._context(0, s.broadcast)
    images = ModelInput(8)(engine.samples.data.at(np.arange(count))[0])
    batch = Batch(images, engine.samples.data.at(np.arange(count))[1], torch.ones(count))
    with context.model.mode(training=True, vectorised=False):
        carry = s.algorithm.client_init({"personal": torch.zeros(0)}, context)
        after = s.algorithm.client_step(carry, batch, context)[0]["theta"]
    model = build_model(s.config.model, s.config.algorithm, 10, 1, 0).train()
    cut = 7 if count == 9 else 8 if count > 8 else (count + 1) // 2
    look = copy.deepcopy(model)
    torch.nn.functional.cross_entropy(look(images[:cut]), batch.labels[:cut]).backward()
    torch.optim.SGD(look.parameters(), 0.001).step()
    look.zero_grad()
    torch.nn.functional.cross_entropy(look(images[cut:]), batch.labels[cut:]).backward()
    for parameter, ahead in zip(model.parameters(), look.parameters(), strict=True):
        parameter.grad = ahead.grad
    torch.optim.SGD(model.parameters(), 0.001).step()
    expected = engine.layout.flatten(model.state_dict())
    learned = ~engine.layout.mask(list(engine.layout.statistics))
    np.testing.assert_allclose(after[learned], expected[learned], atol=1e-6)


@pytest.mark.parametrize("mixture", ["round", "step"])
def test_running_statistics_have_no_part_in_apfls_alpha(mixture):
    s = simulation(algorithm={"name": "apfl", "alpha": 0.5, "mixture": mixture})
    engine, context = s.engine, s.engine._context(0, s.broadcast)
    images = ModelInput(8)(engine.samples.data.at(np.arange(8))[0])
    batch = Batch(images, engine.samples.data.at(np.arange(8))[1], torch.ones(8))
    alphas = []
    for shift in (0.0, 5.0):
        own = s.initial + 0.01
        own[engine.layout.mask(["running_mean"])] += shift
        carry = s.algorithm.client_init({"own": own, "alpha": torch.tensor([0.5])}, context)
        with context.model.mode(training=True, vectorised=False):
            alphas.append(float(s.algorithm.client_step(carry, batch, context)[0]["alpha"]))
    assert alphas[0] == pytest.approx(alphas[1], abs=1e-6)
    assert alphas[0] != 0.5
