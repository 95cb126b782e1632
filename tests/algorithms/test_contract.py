"""What methods are handed, and what happens where a method, a client or a configuration lacks something."""

import numpy as np
import pytest
import torch
from parity import ParityTask

from raysim.algorithms import ALGORITHMS
from raysim.algorithms.base import FederatedAlgorithm, Upload
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare
from raysim.training.aggregation import FixedPoint, PartialSum, Weights, fixed_point, mean_uploads

from configs import tiny
from simulation import Simulation


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("together", [True, False])
def test_a_client_knows_its_samples_classes_and_steps(together, skips):
    s = Simulation(algorithm={"name": "methods:Told", "skips": skips})
    clients, work = np.arange(4), np.array([1.0, 0.6, 1.0, 0.01])
    groups = [clients] if together else clients[:, None]
    states = np.concatenate([s.train(0, g, work_share=work[g]).states for g in groups])
    partition, labels = s.engine.partition, s.engine.samples._labels
    for client, told in zip(clients, states, strict=True):
        own = partition.train(client)
        assert told[0] == len(own)
        np.testing.assert_array_equal(told[3:], np.bincount(labels[own], minlength=10))
        planned = -(-len(own) // 8) * (2 if skips and len(own) % 2 else 3)
        assert told[1] == told[2] == max(1, int(work[client] * planned))


def test_a_phase_in_which_no_client_has_a_part_costs_nothing():
    s = Simulation(algorithm={"name": "fedala"}, data={"partition": {"name": "iid"}})
    calls = []
    s.engine.algorithm.__class__ = type(
        "Counted",
        (ALGORITHMS["fedala"],),
        {"client_step": lambda self, *a: calls.append(a[2].phase) or super(type(self), self).client_step(*a)},
    )
    s.round(0, [[0, 1, 2, 3]])
    assert set(calls) == {"train"}  # all models are equal: nothing to merge
    steps = len(calls) // 2
    for round_, expected in ((1, 11), (2, 1)):  # the first merge, and the next one
        calls.clear()
        s.round(round_, [[0, 1, 2, 3]])
        assert calls.count("merge") == expected * steps


# A weight that the client sends.


def test_uploads_are_weighted_by_what_the_client_sends():
    class Own(FederatedAlgorithm):
        uploads = {"shared": Upload(times="weight"), "weight": Upload()}

    values, own = torch.tensor([[1.0, 2.0], [5.0, -2.0]]), torch.tensor([[0.5], [2.0]])
    weights = Weights(np.array([30, 10]), 40)

    def sums(own):
        total = {"shared": values * own, "weight": own}
        factors = torch.from_numpy(weights.shares)
        return {name: fixed_point(factors @ v.double(), weights, 40) for name, v in total.items()}

    means = mean_uploads(Own(), sums(own))
    expected = (0.75 * 0.5 * values[0] + 0.25 * 2 * values[1]) / (0.75 * 0.5 + 0.25 * 2)
    np.testing.assert_allclose(means["shared"], expected, atol=1e-9)
    assert mean_uploads(Own(), sums(torch.zeros(2, 1))) is None  # nobody counts


def test_a_client_with_a_negative_weight_is_rejected():
    s = Simulation(algorithm={"name": "methods:NegativeWeight"})
    (result,) = s.round(0, [np.arange(8)])
    even = s.engine.partition.num_train[:8] % 2 == 0
    assert result.accepted.tolist() == even.tolist()
    assert 0 < even.sum() < 8


# Bad input.


def test_methods_that_need_sgd_refuse_another_optimiser():
    for name in ("scaffold", "fednova"):
        with pytest.raises(ValueError, match=f"train.optimizer.name: '{name}' needs sgd, not adamw"):
            tiny(algorithm={"name": name}, train={"optimizer": {"name": "adamw"}})


def test_a_loss_of_its_own_is_not_compiled():
    assert tiny(algorithm={"name": "fedprox"}, resources={"compile": True})
    with pytest.raises(ValueError, match="resources.compile: only cross entropy is compiled; 'moon' has"):
        tiny(algorithm={"name": "moon"}, resources={"compile": True})


@pytest.mark.parametrize("name", sorted(n for n, cls in ALGORITHMS.items() if cls.uses_features))
def test_a_model_without_one_classifier_is_refused_before_anything_starts(name):
    model = {"name": "deit_tiny_distilled_patch16_224", "image_size": 8}
    with pytest.raises(ConfigError, match="has no single linear classifier on its representation"):
        prepare(tiny(algorithm={"name": name}, model=model))


def test_what_a_method_must_share_can_not_be_personal():
    with pytest.raises(ConfigError, match="embedding.weight is personal, and this method needs it shared"):
        prepare(tiny(algorithm={"name": "gpfl", "personal": ["head", "embedding"]}))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_a_server_step_that_overflows_stops_the_run_and_says_why(name):
    s = ParityTask("all", {"name": name, "server_lr": 1e39})
    huge = PartialSum(0, sums={"shared": FixedPoint(np.full(len(s.shared), 2**61), 4, 4)})
    with pytest.raises(
        RuntimeError, match=f"round 0: the server step of '{name}' gives parameters that are not finite"
    ):
        s.server.step(0, huge, np.arange(4))


def test_an_upload_out_of_range_is_rejected_and_changes_nothing():
    s = Simulation(algorithm={"name": "feddyn"})
    s.states[1] = 1e30  # a linear term that throws the client far away
    (result,) = s.round(0, [[0, 1]])
    assert result.accepted.tolist() == [True, False]
    assert (s.states[1] == np.float32(1e30)).all()
    assert s.shared.isfinite().all()


def lacking_a_class(name, **keys):
    """The parity task, whose clients 0, 1 and 2 lack two, one and one of five classes."""
    task = ParityTask("part", {"name": name, **keys})
    list(task.run())
    return task


@pytest.mark.parametrize("name", ["fedrod", "fedproto", "fedas", "gpfl"])
def test_clients_without_a_class_train_and_predict(name):
    task = lacking_a_class(name)
    for client in range(4):
        scores = task.scores(client)
        assert np.isfinite(scores).any(axis=1).all()
        assert not np.isnan(scores).any()


def test_a_class_without_a_prototype_pulls_nothing_and_is_not_predicted():
    task = ParityTask("all", {"name": "fedproto"})
    assert (task.server.state["known"] == 0).all()
    first = task.scores(0)
    head = ParityTask("all", {"name": "fedproto", "inference": "head"}).scores(0)
    np.testing.assert_array_equal(first, head)  # as long as there is none, the head predicts
    task.round(0, [[0]])  # who lacks two classes
    known = task.server.state["known"] > 0
    assert (
        known.tolist()
        == (task.engine.samples.client_data([task.engine.partition.train(0)]).class_counts[0] > 0).tolist()
    )
    assert 0 < known.sum() < 5
    assert np.isneginf(task.scores(3)[:, ~known.numpy()]).all()
    assert (task.server.state["prototypes"][~known] == 0).all()
    task.round(1, [[3]])
    assert task.shared.numel() == 0
    assert np.isfinite(task.states[3]).all()


def test_fewer_samples_than_neighbours_vote_with_those_that_there_are():
    few, all_ = (ParityTask("all", {"name": "knnper", "k": k, "lamda": 1.0}) for k in (12, 10**6))
    np.testing.assert_allclose(few.scores(0), all_.scores(0), atol=1e-6)  # client 0 has 12 training samples


MOVES_BEYOND_THE_MEAN = ["fedprox", "scaffold", "feddyn", "fedavgm", "fedadam", "ditto", "pfedme"]


@pytest.mark.parametrize(
    "name", [*MOVES_BEYOND_THE_MEAN, "moon", "feddbe", "gpfl", "fedcp", "fedas", "fedala", "knnper"]
)
def test_a_resnet_trains_and_keeps_positive_variances(name):
    s = Simulation(
        algorithm={"name": name},
        model={"name": "resnet10t", "image_size": 16, "kwargs": {}},
        resources={"clients_per_batch": 1},
        train={"local_epochs": 1, "batch_size": 32, "optimizer": {"lr": 0.01}},
        data={"num_clients": 2, "subset": 60},
    )
    if s.algorithm.prepares:
        s.prepare()
    for round_ in range(2):
        assert all(trained.accepted.all() for trained in s.round(round_, [[0], [1]]))
    theta = s.engine.predictor(2, 0, s.broadcast, s.state(0)).theta[0]
    for name_ in s.engine.layout.statistics:
        if name_.endswith("running_var"):
            assert (s.engine.layout.piece(theta, name_) >= 0).all(), name_


def test_a_configuration_knows_every_method():
    for name in ALGORITHMS:
        assert Config.model_validate({"algorithm": {"name": name}}).algorithm.name == name
        defaults = type(tiny(algorithm={"name": name}).algorithm)().model_dump()
        for key in ("mu", "lamda", "alpha", "beta", "kappa", "eta", "server_lr", "K", "fine_tuning_steps"):
            assert defaults.get(key, 1) != 0, f"{name}.{key} switches the method off"
