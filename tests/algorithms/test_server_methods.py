"""What single methods make of a server that knows its clients: what the numbers of a reference do not reach."""

import numpy as np
import pytest
import torch
from parity import ParityTask

from raysim.algorithms.base import Upload
from raysim.algorithms.feddpa import _mixed
from raysim.algorithms.fedpac import combination_weights
from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare

from configs import tiny
from simulation import Simulation

EVERYONE = np.arange(8)


def test_attention_beyond_an_average_is_scaled_to_one():
    s = Simulation(algorithm={"name": "fedamp", "alpha": 1.0, "sigma": 1.0})
    s.round(0, [EVERYONE])
    near = s.server.state["models"].mean(dim=0).expand(8, -1) + 1e-4 * torch.randn(8, 1)
    s.server.state["models"] = near
    s.server.rows.write(EVERYONE, {"own": near})
    cloud = s.server.messages(1, EVERYONE)["cloud"]  # all seven others count nearly 1, so none of its own is left
    for client in EVERYONE:
        np.testing.assert_allclose(cloud[client], near[client != EVERYONE].mean(dim=0), atol=1e-5)


def test_a_rank_is_pruned_when_its_tail_has_shrunk():
    s = Simulation(
        algorithm={"name": "hetlora", "ranks": [4, 2], "gamma": 0.5, "lamda": 1e-2}, train={"optimizer": {"lr": 0.5}}
    )
    ranks = []
    for round_ in range(6):
        s.round(round_, [[0, 1, 2]])
        ranks.append([int(s.algorithm._rank(s.state(c)).item()) for c in range(3)])
        for client in (0, 1, 2):
            theta = s.engine.predictor(round_, client, s.broadcast, s.state(client)).theta[0]
            down, _ = (s.engine.layout.piece(theta, f"blocks.0.attn.qkv.lora.{part}.weight") for part in ("down", "up"))
            assert (down[ranks[-1][client] :] == 0).all()
    assert ranks[0] != ranks[-1]
    assert all(set(column) <= {4, 2, 1} for column in zip(*ranks, strict=True))
    assert all((np.diff(np.array(ranks), axis=0) <= 0).ravel())


def test_a_client_without_any_weight_keeps_its_own_model():
    s = Simulation(algorithm={"name": "pfedla", "embedding": 2, "hidden": 3})
    rows = s.server.rows.named(EVERYONE)
    own = torch.randn(8, len(s.initial), generator=torch.Generator().manual_seed(0))
    s.server.rows.write(EVERYONE, {**rows, "model": own, "W": torch.zeros_like(rows["W"])})
    np.testing.assert_allclose(s.server.messages(0, EVERYONE)["mixed"], own, atol=1e-6)


def test_clusters_of_the_first_rounds_are_by_id_and_an_empty_one_stays():
    s = Simulation(algorithm={"name": "ifca", "clusters": 3, "warmup_rounds": 1})
    assert all(torch.equal(model, s.shared) for model in s.server.state["others"])
    before = s.shared.clone()
    s.round(0, [[0, 3], [4]])  # clusters 0, 0 and 1
    models = torch.cat([s.shared[None], s.server.state["others"]])
    assert [not torch.equal(model, before) for model in models] == [True, True, False]
    drawn = Simulation(algorithm={"name": "ifca"})
    layout, other = drawn.engine.layout, drawn.server.state["others"][0]
    for name in layout.names:
        first, second = layout.piece(drawn.shared, name).flatten(), layout.piece(other, name).flatten()
        assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(other, drawn.shared)


def test_one_cluster_is_fedavg_with_equal_weights():
    whole = {"train": {"batch_size": 100}}  # a method with one epoch more shuffles otherwise
    one = Simulation(algorithm={"name": "ifca", "clusters": 1}, **whole)
    plain = Simulation(algorithm={"name": "fedavg"}, **whole)
    plain.algorithm.__class__ = type("Uniform", (type(plain.algorithm),), {"uploads": {"shared": Upload("uniform")}})
    plain.engine._uploads = plain.algorithm.uploads
    for s in (one, plain):
        for round_ in range(2):
            s.round(round_, [[0, 1, 2]])
    np.testing.assert_allclose(one.shared, plain.shared, atol=1e-6)


def test_heads_are_combined_by_the_best_weights_on_the_simplex():
    """Against a fine grid: three clients, of which two are alike."""
    draw = torch.Generator().manual_seed(1)
    means = torch.randn(3, 6, generator=draw, dtype=torch.float64)
    means[1] = means[0] + 0.05
    statistics = torch.cat([torch.tensor([[0.3], [0.2], [0.1]], dtype=torch.float64), means], dim=1)
    weights = combination_weights(statistics)
    grid = torch.tensor([[a, b, 100 - a - b] for a in range(101) for b in range(101 - a)], dtype=torch.float64) / 100
    for i in range(3):
        gaps = means[i] - means
        matrix = torch.diag(statistics[:, 0]) + gaps @ gaps.T
        least = torch.einsum("gj,jk,gk->g", grid, matrix, grid).min()
        found = weights[i] @ matrix @ weights[i]
        assert found <= least + 1e-9
        np.testing.assert_allclose(weights[i].sum(), 1)
    assert weights[0, 2] < 0.2 < weights[0, 1]


def test_a_variance_that_was_rounded_below_zero_is_none():
    statistics = torch.tensor([[-1e-7, 1.0, 2.0], [0.02, 1.1, 2.0], [0.03, 0.5, 1.0]]).double()
    weights = combination_weights(statistics)
    np.testing.assert_allclose(weights.sum(dim=1), 1)
    assert weights[0, 0] > 0.99


def test_equal_clients_without_variance_share_their_heads():
    np.testing.assert_allclose(combination_weights(torch.zeros(4, 3, dtype=torch.float64)), 0.25)


def test_held_back_samples_only_validate():
    """What the samples held back are changes what a client mixes, never what it trains on."""
    s = Simulation(algorithm={"name": "fedfomo", "validation": 0.25}, train={"batch_size": 4})
    seen = {"mix": 0.0, "train": 0.0}
    step = type(s.algorithm).client_step

    def counted(self, carry, batch, ctx):
        seen[ctx.phase] += float(batch.mask.sum())
        return step(self, carry, batch, ctx)

    s.engine.algorithm.__class__ = type("Counted", (type(s.algorithm),), {"client_step": counted})
    s.train(0, np.array([3]), local_epochs=1)
    size = int(s.engine.partition.num_train[3])
    held = int(0.25 * size)
    assert seen == {"mix": held, "train": size - held}


def test_a_mixture_of_adapters_is_for_each_image():
    """As many forward passes as images, each with its own share of the local adapter."""
    s = Simulation(algorithm={"name": "feddpa", "mid_dim": 2}, train={"optimizer": {"lr": 0.5}})
    for round_ in range(3):
        s.round(round_, [[0, 1, 2]])
    predictor = s.engine.predictor(3, 0, s.broadcast, s.state(0))
    pool = s.engine.samples.held_out(np.array([0]))
    images = s.engine.samples.model_input(pool.images)
    context = s.engine._context(3, s.broadcast)
    with torch.no_grad(), s.engine._model.mode(training=False, vectorised=False):
        scores, theta = predictor.scores(images)[0], predictor.theta[0]
        z = context.features(_mixed(theta, 1.0, context), images[0])
        train = s.engine.samples.model_input(s.engine.samples.training(np.array([0])).images)[0]
        known = context.features(_mixed(theta, 1.0, context), train)
        weights = 0.5 * torch.nn.functional.cosine_similarity(z[:, None], known[None], dim=2).mean(dim=1)
        each = [context.logits(_mixed(theta, w, context), x[None])[0] for w, x in zip(weights, images[0], strict=True)]
    assert weights.std() > 0
    np.testing.assert_allclose(scores, torch.stack(each), atol=1e-5)


def test_a_diverged_model_can_not_be_decomposed_and_is_rejected():
    s = Simulation(algorithm={"name": "fedkd"}, train={"optimizer": {"lr": 1e18}})
    (trained,) = s.round(0, [[0, 1]])
    assert not trained.accepted.any()
    assert np.isfinite(trained.traffic).all()


def test_the_energy_decides_how_much_is_sent():
    counts = {}
    for energy in (0.3, 0.9, 1.0):
        s = Simulation(algorithm={"name": "fedkd", "energy_start": energy, "energy_end": energy})
        (trained,) = s.round(0, [[0, 1]])
        counts[energy] = trained.traffic[:, 1].tolist()
    size = s.engine.layout.num_parameters
    assert counts[1.0] == [size, size]
    assert max(counts[0.3]) < min(counts[0.9]) <= size


def test_ranks_decide_how_much_is_sent():
    s = Simulation(algorithm={"name": "flexlora", "ranks": [1, 3]})
    (trained,) = s.round(0, [[0, 1]])
    per_rank = sum(n for n, c in zip(s.engine.layout.sizes, s.engine.layout.names, strict=True) if "lora" in c) // 3
    rest = s.engine.layout.num_shared - 3 * per_rank
    assert trained.traffic.tolist() == [[rest + per_rank] * 2, [rest + 3 * per_rank] * 2]


def test_ranks_that_do_not_fit_are_refused():
    for keys, message in (
        ({"ranks": []}, "must be whole numbers of at least 1"),
        ({"ranks": [0, 2]}, "must be whole numbers of at least 1"),
        ({"ranks": [2, 4], "mid_dim": 8}, "'mid_dim' is the largest of 'ranks', 4, not 8"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(algorithm={"name": "hetlora", **keys})
    with pytest.raises(ConfigError, match=r"this method needs blocks.0.attn.qkv.lora.up.weight shared and trained"):
        prepare(tiny(algorithm={"name": "flexlora", "personal": ["lora.up"]}))


def test_a_frame_larger_than_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"algorithm.width: a frame of 4 pixels leaves nothing of 8x8 pixels"):
        prepare(tiny(algorithm={"name": "pfedpt", "width": 4}))


def test_fedkd_needs_a_model_without_batch_norm():
    model = {"name": "resnet10t", "image_size": 32, "kwargs": {}}
    with pytest.raises(ConfigError, match="fedkd trains two models in one step"):
        prepare(tiny(algorithm={"name": "fedkd"}, model=model, resources={"clients_per_batch": 1}))


def test_a_server_step_that_gives_no_number_names_what():
    task = ParityTask("all", {"name": "pfedhn", "server_lr": 1e40})
    with pytest.raises(RuntimeError, match=r"the server step of 'pfedhn' gives '\w+', which is not finite"):
        for _ in task.run():
            pass
