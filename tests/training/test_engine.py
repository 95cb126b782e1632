"""The engine without Ray: vectorised and one by one, padding, rejection, evaluation, and the contract."""

import numpy as np
import pytest
import torch

from raysim.algorithms import ALGORITHMS
from raysim.models.build import build_model
from raysim.plugins.registry import PLUGINS

import methods
from simulation import Simulation

# Noise is drawn for a batch; and with the default weight of its pull an untrained model does not converge at this lr.
OTHERWISE = ("fedperfix", "centralized", "fedcp", "feddbe")
TOGETHER, ALONE = [[0, 1, 2, 3]], [[0], [1], [2], [3]]


def by_client(trained, field):
    rows = {int(c): v for r in trained for c, v in zip(r.clients, field(r), strict=True)}
    return np.stack([rows[c] for c in sorted(rows)])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *({"algorithm": {"name": name}} for name in ALGORITHMS if name not in OTHERWISE),
        {"algorithm": {"name": "fedcp", "gumbel": False}},
        {"algorithm": {"name": "feddbe", "kappa": 1.0, "momentum": 0.5}},
        {"algorithm": {"name": "perfedavg", "hessian_free": True}},
        {"algorithm": {"name": "apfl", "mixture": "step", "alpha": 0.3}},
        {"algorithm": {"name": "fedbabu", "fine_tuning_steps": 3}},
        *({"algorithm": {"name": "fedperfix", "plugin": plugin}} for plugin in PLUGINS),
        {"algorithm": {"name": "fedperfix", "plugin": "lora", "personal": ["head"], "freeze_backbone": True}},
        {"train": {"optimizer": {"momentum": 0.9, "weight_decay": 0.01}}},
        {"train": {"optimizer": {"name": "adamw", "lr": 0.01}, "schedule": "cosine"}},
        {"train": {"optimizer": {"clip_norm": 0.5}}},
        {"data": {"augment": "crop_flip"}},
        {"model": {"image_size": 16}},
        *({"algorithm": {"name": f"methods:{cls.__name__}"}} for cls in methods.CONTRACT),
    ],
    ids=str,
)
def test_vectorised_equals_one_by_one(changes):
    vectorised, single, general = Simulation(**changes), Simulation(**changes), Simulation(**changes)
    assert vectorised.engine._model._written is not None
    general.engine._model._written = None
    before = vectorised.shared.clone(), vectorised.states.copy()
    # Attention does not depend on the keys' bias: its gradient is rounding noise, which AdamW scales up to the step size.
    noise = 50 if "adamw" in str(changes) else 1
    general.round(0, TOGETHER)  # every gradient by autograd and vmap
    for round_ in range(2):
        a, b = vectorised.round(round_, TOGETHER), single.round(round_, ALONE)
        if round_ == 0:
            np.testing.assert_allclose(vectorised.shared, general.shared, atol=noise * 2e-5)
            np.testing.assert_allclose(vectorised.states, general.states, atol=noise * 2e-4)
        np.testing.assert_allclose(vectorised.shared, single.shared, atol=noise * 2e-5)
        np.testing.assert_allclose(vectorised.states, single.states, atol=noise * 2e-4)
        for pick in (lambda r: r.metrics["loss"], lambda r: r.evaluation.correct):
            np.testing.assert_allclose(by_client(a, pick), by_client(b, pick), atol=1e-4)
    assert not (torch.equal(before[0], vectorised.shared) and np.array_equal(before[1], vectorised.states))


def test_fedavg_is_plain_torch_training_and_a_weighted_mean():
    simulation = Simulation(algorithm={"name": "fedavg"})
    engine, config = simulation.engine, simulation.config
    from raysim import seeds
    from raysim.training.transforms import ModelInput

    expected, sizes = 0.0, engine.partition.num_train[:2]
    for client in (0, 1):
        model = build_model(config.model, config.algorithm, 10, 1, 0)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        index = engine.partition.train(client)
        rng = seeds.stream(0, "batches", 0, client)
        for order in rng.permuted(np.tile(np.arange(len(index)), (2, 1)), axis=1):
            for chunk in torch.from_numpy(index[order]).split(8):
                images = ModelInput(8)(engine.samples.data.at(chunk.numpy())[0])
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images), engine.samples.data.at(chunk.numpy())[1]).backward()
                optimizer.step()
        theta = engine.layout.flatten(model.state_dict())
        expected = expected + theta.double() * sizes[client] / sizes.sum()
    simulation.round(0, [[0, 1]])
    np.testing.assert_allclose(simulation.shared, expected, atol=1e-6)


def test_local_shares_nothing_and_only_the_cohort_changes():
    simulation = Simulation(algorithm={"name": "local"})
    before = simulation.states.copy()
    simulation.round(0, [[2, 5]])
    changed = (simulation.states != before).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [2, 5]
    assert len(simulation.shared) == 0


def test_fedperfix_keeps_plugin_and_head():
    engine = Simulation().engine
    personal = engine.layout.names[engine.layout.num_shared_tensors :]
    assert all("adapter" in name or name.startswith("head") for name in personal)
    assert len(personal) == 2 * 4 + 2  # down and up with biases in two blocks; the head


def test_the_order_of_client_batches_changes_no_bit():
    first, second = Simulation(), Simulation()
    a, b = first.round(0, [[0, 1], [2, 3]]), second.round(0, [[2, 3], [0, 1]])
    assert np.array_equal(a[0].evaluation.probabilities, b[1].evaluation.probabilities)
    assert torch.equal(first.shared, second.shared)
    assert np.array_equal(first.states, second.states)


def test_a_client_with_nan_is_rejected_keeps_its_state_and_is_evaluated_as_untrained():
    # Over two epochs every label is seen twice, so nobody's count is odd.
    (result,) = Simulation(algorithm={"name": "methods:Poisoned"}).round(0, [[0, 1, 2, 3]])
    assert result.accepted.all()
    simulation = Simulation(algorithm={"name": "methods:Poisoned"}, train={"local_epochs": 1})
    labels, partition, incoming = (
        simulation.engine.samples.data._labels.numpy(),
        simulation.engine.partition,
        simulation.broadcast,
    )
    (result,) = simulation.round(0, [[0, 1, 2, 3]])
    expected = np.array([(labels[partition.train(c)] == 0).sum() % 2 == 0 for c in range(4)])
    assert 0 < expected.sum() < 4
    assert result.accepted.tolist() == expected.tolist()
    initial = simulation.engine.initial_state
    assert ((result.states == initial).all(axis=1) == ~expected).all()
    rejected = np.flatnonzero(~expected)
    untrained = simulation.engine.evaluate(0, rejected, incoming, np.tile(initial, (len(rejected), 1)))
    assert result.evaluation.correct[rejected].tolist() == untrained.correct.tolist()
    assert torch.isfinite(simulation.shared).all()


def test_all_clients_rejected_leaves_the_server_as_it_was():
    simulation = Simulation(algorithm={"name": "fedavg"}, train={"optimizer": {"lr": 1e30}})
    before = simulation.shared.clone()
    (result,) = simulation.round(0, [[0, 1]])
    assert not result.accepted.any()
    assert torch.equal(simulation.shared, before)


def test_adaptation_for_evaluation_leaves_no_trace():
    simulation = Simulation(algorithm={"name": "fedbabu"})
    with_evaluation = simulation.round(0, [[0, 1]])[0]
    again = Simulation(algorithm={"name": "fedbabu"})
    without = again.train(0, np.array([0, 1]), evaluate=False)
    assert np.array_equal(with_evaluation.states, without.states)
    head = simulation.engine.layout.mask(["head"])
    assert torch.equal(simulation.shared[head], simulation.initial[head])  # trained with the initial head
    theta = simulation.broadcast["shared"]
    plain = again.engine._evaluator.one_model(np.array([0, 1]), theta)
    adapted = simulation.engine.evaluate(1, np.array([0, 1]), simulation.broadcast, simulation.states[:2])
    assert not np.allclose(plain.probabilities, adapted.probabilities)


@pytest.mark.parametrize("name", ["fedbabu", "perfedavg"])
def test_adaptation_does_not_depend_on_schedule_or_optimiser(name):
    """With a cosine schedule the last, reported round had models that were hardly adapted; under AdamW, steps of sign."""
    clients = np.array([0, 1])
    plain = Simulation(algorithm={"name": name, "adapt_lr": 0.1}, rounds=8)
    adamw = {"name": "adamw", "lr": 0.001}
    other = Simulation(
        algorithm={"name": name, "adapt_lr": 0.1}, rounds=8, train={"schedule": "cosine", "optimizer": adamw}
    )
    for round in (0, 7):
        expected = plain.engine.evaluate(round, clients, plain.broadcast, plain.states[:2])
        found = other.engine.evaluate(round, clients, other.broadcast, other.states[:2])
        assert np.array_equal(expected.probabilities, found.probabilities)


def test_evaluation_without_adaptation_is_that_of_the_parameters_as_they_are():
    simulation = Simulation(algorithm={"name": "fedbabu", "adapt_lr": 0.5})
    clients = np.array([0, 1])
    before = simulation.engine.evaluate(0, clients, simulation.broadcast, simulation.states[:2], adapt=False)
    plain = simulation.engine.evaluate_global(clients, simulation.broadcast)
    assert np.array_equal(before.probabilities, plain.probabilities)
    after = simulation.engine.evaluate(0, clients, simulation.broadcast, simulation.states[:2])
    assert not np.allclose(before.probabilities, after.probabilities)


def test_evaluation_of_equal_models_in_one_pass_equals_client_by_client():
    simulation = Simulation(algorithm={"name": "fedavg"})
    clients = np.arange(8)
    at_once = simulation.engine.evaluate(0, clients, simulation.broadcast, simulation.states)
    shared = simulation.shared.expand(8, -1)
    state = simulation.engine._unpacked(simulation.states)
    context = simulation.engine._context(0, simulation.broadcast)
    with torch.no_grad():
        one_by_one = simulation.engine._evaluator.clients(clients, shared, state, context)
    assert at_once.correct.tolist() == one_by_one.correct.tolist()
    np.testing.assert_allclose(at_once.probabilities, one_by_one.probabilities, atol=1e-5)
    assert at_once.num_samples.tolist() == simulation.engine.partition.num_test.tolist()


@pytest.mark.parametrize("rate", ["proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_dropout_is_seeded_by_round_and_client(rate):
    kwargs = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, rate: 0.3}
    runs = [Simulation(model={"kwargs": kwargs}) for _ in range(2)]
    torch.manual_seed(1)
    runs[0].round(0, [[0, 1], [2]])
    torch.manual_seed(2)
    runs[1].round(0, [[2], [0, 1]])
    assert torch.equal(runs[0].shared, runs[1].shared)
    without = Simulation()
    without.round(0, [[0, 1], [2]])
    assert not torch.equal(runs[0].shared, without.shared)


def test_stochastic_depth_drops_other_samples_for_each_client():
    kwargs = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path_rate": 0.9}
    engine = Simulation(model={"kwargs": kwargs}).engine
    context = engine._context(0, {"shared": torch.zeros(engine.layout.num_shared)})
    images = torch.ones(1, 64, 1, 8, 8).expand(2, -1, -1, -1, -1)
    theta = torch.randn(engine.layout.num_parameters, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    torch.manual_seed(0)
    with context.model.mode(training=True, vectorised=True):
        logits = torch.func.vmap(context.logits, randomness="different")(theta, images)
    assert len(logits[0].unique(dim=0)) > 1  # of 64 equal samples some lose the second block
    assert not torch.equal(logits[0], logits[1])


def test_messages_reach_their_clients():
    simulation = Simulation(algorithm={"name": "methods:Known", "self_weight": 1.0}, train={"optimizer": {"lr": 1e-9}})
    everyone = np.arange(8)
    before = simulation.server.rows.named(everyone)["own"] + everyone[:, None].astype(np.float32)
    simulation.server.rows.write(everyone, {"own": before})
    simulation.round(0, [[5, 1], [3]])
    np.testing.assert_allclose(simulation.states[[1, 3, 5]], before[[1, 3, 5]], atol=1e-5)
    np.testing.assert_allclose(simulation.server.rows.named(everyone)["own"], before, atol=1e-5)


def test_a_diverged_model_is_wrong_and_does_not_end_the_run():
    simulation = Simulation(algorithm={"name": "fedavg"})
    simulation.server.shared = torch.full_like(simulation.shared, 1e30)
    (result,) = simulation.round(0, [[0, 1]])
    assert not result.accepted.any()
    assert result.evaluation.correct.tolist() == [0, 0]
    assert not result.evaluation.probabilities.any()
    others = simulation.engine.evaluate(0, np.array([2]), simulation.broadcast, simulation.states[[2]])
    assert others.correct.tolist() == [0]


def test_a_metric_of_one_phase_is_averaged_over_that_phase():
    simulation = Simulation(algorithm={"name": "methods:OneInTraining"})
    (result,) = simulation.round(0, [[0, 1]])
    assert result.metrics["one"].tolist() == [1.0, 1.0]
    assert (result.metric_samples["one"] < result.metric_samples["loss"]).all()


def test_an_upload_that_is_no_vector_is_said():
    with pytest.raises(AssertionError, match="the upload 'shared' must be a vector per client"):
        Simulation(algorithm={"name": "methods:Scalar"}).round(0, [[0, 1]])


def test_a_straggler_stops_after_its_share_of_all_its_steps():
    simulation = Simulation(train={"local_epochs": 3, "batch_size": 4, "optimizer": {"lr": 0.05}})
    engine, clients = simulation.engine, np.arange(4)
    steps = 3 * -(-engine.partition.num_train[:4] // 4)
    work = np.array([1.0, 0.5, 1e-9, 0.99])
    counted = []
    step = engine.algorithm.client_step

    def counting(carry, batch, ctx):
        counted.append(1)
        return step(carry, batch, ctx)

    together = simulation.train(0, clients, work_share=work)
    for client in range(4):
        counted.clear()
        engine.config.algorithm.__dict__["client_step"] = counting
        alone = simulation.train(0, clients[client : client + 1], work_share=work[client : client + 1])
        del engine.config.algorithm.__dict__["client_step"]
        assert len(counted) == max(1, int(work[client] * steps[client]))
        np.testing.assert_allclose(together.states[client], alone.states[0], atol=1e-5)
        np.testing.assert_allclose(together.metrics["loss"][client], alone.metrics["loss"][0], rtol=1e-4)
    everything = simulation.train(0, clients)
    assert not np.allclose(together.states[1], everything.states[1], atol=1e-5)
    np.testing.assert_allclose(together.states[0], everything.states[0], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["fedrep", "apfl", "perfedavg", "fedbabu", "fedala", "fednova", "scaffold", "methods:OneInTraining"],
)
def test_stragglers_of_methods_with_several_phases_report_finite_numbers(name):
    keys = {"body_epochs": 2} if name == "methods:OneInTraining" else {}
    simulation = Simulation(algorithm={"name": name, **keys}, train={"local_epochs": 3})
    result = simulation.train(0, np.arange(3), work_share=np.array([0.01, 0.5, 1.0]))
    assert result.accepted.all()
    assert all(np.isfinite(values).all() for values in result.metrics.values())
    assert (result.metric_samples["loss"] > 0).all()
    if name == "methods:OneInTraining":  # the first one stops before the phase that reports it
        assert (result.metric_samples["one"] > 0).tolist() == [False, True, True]


def test_training_at_the_full_rate_does_not_follow_the_schedule():
    """The last round's of a cosine is next to nothing, and says nothing of how well new clients do."""
    last, clients = 9, np.arange(4)
    states = {}
    for schedule in ("constant", "cosine"):
        one = Simulation(train={"schedule": schedule}, rounds=10)
        states[schedule] = {full: one.train(last, clients, full_rate=full).states for full in (False, True)}
    np.testing.assert_array_equal(states["cosine"][True], states["constant"][True])
    assert not np.array_equal(states["cosine"][False], states["constant"][False])


def test_steps_per_epoch_cuts_every_epoch():
    """A trial step goes through one batch of every local epoch, whatever the clients have."""
    simulation = Simulation(algorithm={"name": "fedavg"}, train={"batch_size": 2})
    assert simulation.engine.partition.num_train[:2].min() > 6
    steps, step = [], type(simulation.algorithm).client_step

    def counted(self, carry, batch, ctx):
        steps.append(ctx.epoch)
        return step(self, carry, batch, ctx)

    simulation.engine.algorithm.__class__ = type("Counted", (type(simulation.algorithm),), {"client_step": counted})
    simulation.train(0, np.array([0, 1]), local_epochs=3, steps_per_epoch=2)
    assert steps == [0, 0, 1, 1, 2, 2]
