"""What the reference numbers do not show: stragglers, models with BatchNorm, clients that train late or never."""

import numpy as np
import pytest
import torch
from parity import ParityTask

from raysim.algorithms import ALGORITHMS
from raysim.algorithms.base import FederatedAlgorithm, Upload
from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare

from configs import tiny
from simulation import Simulation

RESNET = {
    "model": {"name": "resnet10t", "image_size": 16, "kwargs": {}},
    "resources": {"clients_per_batch": 1},
    "train": {"local_epochs": 1, "batch_size": 32, "optimizer": {"lr": 0.01}},
    "data": {"num_clients": 2, "subset": 60},
}


def test_fedphp_inherits_by_participation_as_by_rounds_if_everyone_always_trains():
    ours, theirs = (ParityTask("all", {"name": "fedphp", "inherit": i}) for i in ("participations", "rounds"))
    list(ours.run()), list(theirs.run())
    for client in range(4):
        np.testing.assert_allclose(ours.scores(client), theirs.scores(client), atol=1e-6)


def test_fedphp_of_a_client_that_trains_late_keeps_nothing_of_the_initial_model():
    task = ParityTask("part", {"name": "fedphp", "lamda": 1e-6})
    list(task.run())
    late, fedavg = task.state(3), ParityTask("part", {"name": "fedprox", "mu": 1e-9})
    *_, (_, (trained,)) = fedavg.run()
    # Client 3 trains in the last round only: its first model is what it trained, next to FedAvg's.
    assert late["trained"] == 1
    expected = task.predictor(3).scores(
        task.engine.samples.model_input(task.engine.samples.held_out(np.array([3])).images)
    )
    own = trained.evaluation.probabilities[8:]
    np.testing.assert_allclose(expected[0].softmax(dim=1), own, atol=1e-3)


def test_fedphp_evaluates_who_never_trained_with_the_servers_model():
    s = Simulation(algorithm={"name": "fedphp"})
    s.round(0, [[0, 1]])
    assert torch.equal(s.engine.predictor(1, 5, s.broadcast, s.state(5)).theta[0], s.shared)


def test_fedala_merges_the_last_layer_of_a_resnet_not_its_statistics():
    s = Simulation(algorithm={"name": "fedala"}, **RESNET)
    layout = s.engine.layout
    last = s.algorithm._last(layout)
    both = torch.cat([layout.piece(s.initial, f"fc.{kind}").flatten() for kind in ("weight", "bias")])
    assert torch.equal(s.initial[last], both)
    with pytest.raises(ConfigError, match=r"algorithm\.p: the model has \d+ tensors, not 999"):
        prepare(tiny(algorithm={"name": "fedala", "p": 999}))


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_corrections_leave_running_statistics_alone(name):
    s = Simulation(algorithm={"name": name}, **RESNET)
    s.round(0, [[0], [1]])
    kept = s.state(0)["control" if name == "scaffold" else "linear"]
    statistics = s.engine.layout.mask(s.engine.layout.statistics)
    assert (kept[statistics] == 0).all()
    assert (kept[~statistics] != 0).any()


def test_stragglers_of_fedas_complete_what_is_no_training():
    s = Simulation(algorithm={"name": "fedas"}, train={"local_epochs": 4})
    work = np.array([1.0, 0.5, 0.01])
    trained = s.train(0, np.arange(3), work_share=work)
    assert trained.sums["fisher"].mean(44).item() > 1e-3
    for client in range(3):
        alone = s.train(0, np.array([client]), work_share=work[[client]])
        assert alone.sums["fisher"].mean(44).item() > 1e-4
        assert alone.metric_samples["alignment"][0] == s.engine.partition.num_train[client]
        np.testing.assert_allclose(alone.states[0], trained.states[client], atol=1e-5)
    assert (trained.metric_samples["loss"] > 0).all()
    assert trained.metric_samples["loss"][2] <= 8  # one step


def test_stragglers_of_fedala_train_after_the_merge():
    s = Simulation(algorithm={"name": "fedala"})
    s.round(0, [[0, 1, 2, 3]])
    straggler = s.train(1, np.array([0]), work_share=np.array([0.5]))
    half = s.engine.partition.num_train[0]
    assert straggler.metric_samples["merge"][0] == 11 * half
    assert 0 < straggler.metric_samples["loss"][0] <= half


def test_methods_that_share_everything_are_evaluated_as_one_model_whatever_clients_keep():
    for name in ("fedavg", "scaffold", "feddyn", "moon", "fedprox", "fednova", "fedadam"):
        assert Simulation(algorithm={"name": name}).engine.evaluates_one_model(), name
    for name in ("knnper", "fedrod", "ditto", "fedbabu", "fedper", "feddbe"):
        assert not Simulation(algorithm={"name": name}).engine.evaluates_one_model(), name


def test_what_leaves_a_method_nothing_to_train_or_to_share_is_refused():
    on_lora = {"feddpa", "hetlora"}  # which always have the plugin
    needs_body = sorted(name for name, cls in ALGORITHMS.items() if cls.needs_body and name not in on_lora)
    assert {"fedas", "fedbabu", "fedrep", "moon", "lgfedavg"} <= set(needs_body)
    for name in needs_body:
        with pytest.raises(ValueError, match="'freeze_backbone' without a plugin leaves the head alone"):
            ALGORITHMS[name](freeze_backbone=True)
    assert ALGORITHMS["fedavg"](freeze_backbone=True).trainable_patterns() == ["head"]
    for name in ("fedprox", "scaffold", "fedper"):
        with pytest.raises(ConfigError, match=f"{name} would share nothing; that is the method 'local'"):
            prepare(tiny(algorithm={"name": name, "personal": ["*"]}))


def test_keys_of_fine_tuning_without_fine_tuning_are_refused():
    assert ALGORITHMS["fedbabu"](fine_tuning_steps=0).adapt_steps() == 0
    with pytest.raises(ValueError, match="'adapt_lr' and 'adapt_momentum' are about fine-tuning"):
        ALGORITHMS["fedbabu"](fine_tuning_steps=0, adapt_lr=0.1)


@pytest.mark.parametrize(
    "uploads",
    [
        {"shared": Upload(times="nothing")},
        {"shared": Upload("uniform", times="weight"), "weight": Upload("samples")},
    ],
)
def test_a_weight_must_be_an_upload_of_equal_weighting(uploads):
    with pytest.raises(TypeError, match=r"Own\.uploads\['shared'\]: times='.*' must be an upload of equal weighting"):
        type("Own", (FederatedAlgorithm,), {"uploads": uploads})


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"centralized"}))
def test_clients_that_never_took_part_are_evaluated_before_and_after_they_adapt(name):
    s = Simulation(algorithm={"name": name}, train={"optimizer": {"lr": 0.02}}, evaluate={"new_clients": 2})
    if s.algorithm.prepares:
        s.prepare()
    s.round(0, [[0, 1, 2]])
    new, states = np.array([8, 9]), np.tile(s.engine.initial_state, (2, 1))
    before = s.engine.evaluate(1, new, s.broadcast, states, adapt=False, messages=s.server.messages(1, new))
    s.states = np.concatenate([s.states, states])
    after = s.train(1, new, full_rate=True)
    assert after.accepted.all()
    for evaluation in (before, after.evaluation):
        np.testing.assert_allclose(evaluation.probabilities.sum(axis=1), 1, atol=1e-5)
        assert evaluation.num_samples.sum() == len(evaluation.probabilities)
    assert not np.array_equal(before.probabilities, after.evaluation.probabilities)
