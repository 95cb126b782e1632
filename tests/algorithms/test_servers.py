"""What the contract gives a server that knows its clients."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raysim.algorithms.base import FederatedAlgorithm, Upload
from raysim.algorithms.lora import rank_index
from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare
from raysim.training.aggregation import ClientUploads, Weights, mean_uploads, weighted_sum
from raysim.training.algorithm_server import AlgorithmServer

from configs import tiny
from simulation import Simulation

EVERYONE = np.arange(8)


def test_an_entry_is_averaged_over_those_that_trained_it():
    s = Simulation(algorithm={"name": "methods:Masked"})
    before, clients = s.shared.clone(), np.array([1, 4])  # both train the same third in a round, nobody the others
    alone = [s.train(0, clients[[i]]) for i in range(2)]
    trained = [result.sums["shared"].total / 2.0**40 for result in alone]  # times the mask, with weight 1
    s.round(0, [clients])
    mask = (np.arange(len(before)) + 1) % 3 == 0
    sizes = s.engine.partition.num_train[clients]
    np.testing.assert_allclose(
        s.shared[mask], (trained[0] * sizes[0] + trained[1] * sizes[1])[mask] / sizes.sum(), atol=1e-6
    )
    assert torch.equal(s.shared[~mask], before[~mask])
    assert not torch.equal(s.shared[mask], before[mask])


def test_masks_of_several_clients_are_an_exact_mean_of_each_entry():
    """With whole numbers nothing is rounded: the mean of each entry is over the clients whose mask has it."""

    class Whole(FederatedAlgorithm):
        uploads = {"shared": Upload("uniform", mask="mask"), "mask": Upload("uniform", known=True, scale_bits=60)}

    values = torch.tensor([[3.0, 5, 7, 9], [1, 1, 1, 1], [10, 20, 30, 40]])
    mask = torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]])
    weights, everyone = Weights(np.ones(3, np.int64), 3), np.ones(3, bool)
    sums = {
        "shared": weighted_sum(values * mask, weights, everyone, 40),
        "mask": weighted_sum(mask, weights, everyone, 60),
    }
    mean = mean_uploads(Whole(), sums)["shared"]
    np.testing.assert_allclose(mean[:3], [2.0, 12.5, 1.0], atol=1e-11)
    assert mean[3].isnan()


def test_groups_have_means_of_their_own():
    s = Simulation(algorithm={"name": "methods:Masked"})
    counts = np.stack(
        [np.bincount(s.engine.samples._labels[s.engine.partition.train(c)], minlength=10) for c in EVERYONE]
    )
    s.round(0, [[0, 2, 6], [4]])
    np.testing.assert_allclose(s.server.state["bias"][0], counts[[0, 2, 4, 6]].mean(axis=0), atol=1e-6)
    assert (s.server.state["bias"][1] == 0).all()  # nobody: as it was
    s.round(1, [[0, 1, 3]])
    np.testing.assert_allclose(s.server.state["bias"][0], counts[0], atol=1e-6)
    np.testing.assert_allclose(s.server.state["bias"][1], counts[[1, 3]].mean(axis=0), atol=1e-6)


def test_uploads_of_each_are_in_the_order_of_ids_whatever_trained_first():
    parts = [
        ClientUploads(np.array([5, 1]), {"x": np.array([[5.0], [1.0]], np.float32)}),
        ClientUploads(np.array([], np.int64), {"x": np.empty((0, 1), np.float32)}),
        ClientUploads(np.array([3, 0]), {"x": np.array([[3.0], [0.0]], np.float32)}),
    ]
    merged = ClientUploads.merge(parts)
    assert merged.clients.tolist() == merged.values["x"][:, 0].tolist() == [0, 1, 3, 5]


def test_who_is_rejected_or_silent_is_not_among_the_uploads_and_keeps_its_row():
    s = Simulation(algorithm={"name": "methods:Known"})
    s.server.rows.write(np.array([1]), {"own": torch.full((1, len(s.initial)), torch.inf)})  # its message is no model
    before = s.server.rows.named(EVERYONE)["own"]
    (trained,) = s.round(0, [[0, 1, 2]])
    assert trained.accepted.tolist() == [True, False, True]
    assert trained.uploads.clients.tolist() == [0, 2]
    after = s.server.rows.named(EVERYONE)["own"]
    changed = (after != before).any(dim=1)
    assert changed.tolist() == [True, False, True] + [False] * 5


def test_a_cohort_whose_uploads_do_not_fit_is_refused_with_the_one_that_does():
    config = tiny(algorithm={"name": "fedamp"}, cohort={"size": 8}, data={"num_clients": 8})
    size = 4 * prepare(config)[0].layout.num_parameters
    for fits in (8, 5):
        limit = {"server_memory": 2 * fits * size / 2**30 + 1e-9}  # what it sends, and what the server has of it
        config = tiny(algorithm={"name": "fedamp"}, cohort={"size": 8}, data={"num_clients": 8}, resources=limit)
        if fits == 8:
            prepare(config)
        else:
            with pytest.raises(
                ConfigError, match=r"resources.server_memory: the server of fedamp needs .*cohort.size=5 or less"
            ):
                prepare(config)


def test_a_limit_below_one_client_is_said_to_be_that():
    config = tiny(algorithm={"name": "pfedhn"}, resources={"server_memory": 1e-6})
    with pytest.raises(ConfigError, match="not even one fits: raise the limit"):
        prepare(config)


def test_apple_is_for_few_clients():
    kwargs = {"patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}
    config = tiny(algorithm={"name": "apple"}, data={"num_clients": 8}, model={"kwargs": kwargs})
    (run,) = prepare(config)
    with pytest.raises(
        ConfigError, match=r"apple sends the models of all clients to each: 800 are 1\d GiB, of which 8 are"
    ):
        AlgorithmServer(run.config, run.layout, torch.from_numpy(run.initial), np.ones(800, np.int64))


@pytest.mark.parametrize(
    ("uploads", "message"),
    [
        ({"shared": Upload(times="w", mask="w"), "w": Upload()}, "can't all be used for one mean"),
        ({"shared": Upload("each", mask="w"), "w": Upload("each")}, "can't all be used for one mean"),
        ({"shared": Upload(groups="w"), "w": Upload("uniform")}, "groups='w' must be an upload of equal weighting"),
        (
            {"shared": Upload(mask="v"), "v": Upload(mask="w"), "w": Upload()},
            "mask='v' must be an upload of equal weighting",
        ),
    ],
)
def test_what_weighs_an_upload_must_fit_it(uploads, message):
    with pytest.raises(TypeError, match=message):
        type("Own", (FederatedAlgorithm,), {"uploads": uploads})


def test_rows_begin_as_the_seed_says_and_are_kept():
    first, second, other = (Simulation(algorithm={"name": "pfedhn"}, seed=seed) for seed in (0, 0, 1))
    rows = [s.server.rows.named(EVERYONE)["embedding"] for s in (first, second, other)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert len(rows[0].unique(dim=0)) == 8
    first.round(0, [[2, 5]])
    now = first.server.rows.named(EVERYONE)["embedding"]
    assert (now != rows[0]).any(dim=1).tolist() == [c in (2, 5) for c in EVERYONE]
    beyond = first.server.rows.named(np.array([8]))  # a client that never takes part
    assert beyond["embedding"].isfinite().all()


BATCH_NORM = {
    "model": {"name": "resnet10t", "image_size": 32, "kwargs": {}},
    "resources": {"clients_per_batch": 1},
    "data": {"num_clients": 4},
}


def test_several_models_have_running_statistics_of_their_own():
    s = Simulation(algorithm={"name": "ifca", "warmup_rounds": 1}, **BATCH_NORM)
    s.round(0, [[0], [1]])
    layout, other = s.engine.layout, s.server.state["others"][0]
    assert s.shared.shape == other.shape == (layout.num_shared,)
    name = layout.statistics[0]
    assert not torch.equal(layout.piece(s.shared, name), layout.piece(other, name))
    drawn = Simulation(algorithm={"name": "ifca"}, **BATCH_NORM)
    for round_ in range(2):
        assert all(t.accepted.all() for t in drawn.round(round_, [[0], [1]]))


@pytest.mark.parametrize("name", ["pfedhn", "apple"])
def test_parameters_that_are_no_averages_can_not_be_running_statistics(name):
    with pytest.raises(ConfigError, match=f"algorithm.name: {name}.*BatchNorm"):
        prepare(tiny(algorithm={"name": name}, **BATCH_NORM))


def test_clusters_of_a_pretrained_model_need_a_warm_up(tmp_path):
    (run,) = prepare(tiny(algorithm={"name": "fedavg"}))
    weights = {n: t.clone() for n, t in run.layout.unflatten(torch.from_numpy(run.initial)).items()}
    save_file(weights, tmp_path / "weights.safetensors")
    model = {"weights": str(tmp_path / "weights.safetensors")}
    with pytest.raises(ConfigError, match=r"of no use to ifca: .*set algorithm.warmup_rounds=1"):
        prepare(tiny(algorithm={"name": "ifca"}, model=model))
    prepare(tiny(algorithm={"name": "ifca", "warmup_rounds": 1}, model=model))


@pytest.mark.parametrize("name", ["pfedpt", "feddpa"])
def test_stragglers_train_what_they_send(name):
    s = Simulation(algorithm={"name": name}, train={"optimizer": {"lr": 0.1}})
    s.round(0, [[0, 1]])
    before = s.shared.clone()
    s.round(1, [[0, 1]], work_share=np.array([0.3, 0.3]))
    assert not torch.equal(s.shared, before)


def test_ranks_that_no_client_of_a_round_has_stay():
    s = Simulation(algorithm={"name": "hetlora", "ranks": [2, 4]}, train={"optimizer": {"lr": 0.5}})
    index = rank_index(s.engine.layout, torch.device("cpu"))
    before = s.shared.clone()
    (trained,) = s.round(0, [[0, 2]])  # both of rank 2
    assert torch.equal(s.shared[index >= 2], before[index >= 2])
    assert not torch.equal(s.shared[index == 1], before[index == 1])
    assert (trained.traffic[:, 1] == trained.traffic[:, 0] + 1).all()


def test_an_update_is_of_no_use_to_who_was_absent():
    s = Simulation(algorithm={"name": "fedkd", "energy_start": 0.5, "energy_end": 0.5})
    s.round(0, [[0, 1]])
    (trained,) = s.round(1, [[0, 2]])
    assert trained.traffic[0, 0] < trained.traffic[1, 0] == s.engine.layout.num_shared


def test_samples_that_are_held_back_need_a_model_without_batch_norm():
    with pytest.raises(ConfigError, match="fedfomo holds samples back by masking them, and BatchNorm layers"):
        prepare(tiny(algorithm={"name": "fedfomo"}, **BATCH_NORM))


def test_a_client_that_counts_too_much_in_several_means_is_rejected():
    s = Simulation(algorithm={"name": "methods:Heavy"})
    (trained,) = s.round(0, [[0, 1, 2]])
    assert trained.accepted.tolist() == [True, False, True]


def test_a_rejected_client_is_evaluated_as_if_untrained():
    s = Simulation(algorithm={"name": "pfedhn"}, train={"optimizer": {"lr": 0.01}})
    s.round(0, [[0, 1, 2]])
    clients = np.array([0, 1, 2])
    before = s.engine.evaluate(1, clients, s.broadcast, s.states[clients], messages=s.server.messages(1, clients))
    s.algorithm.__class__ = type(
        "Poisoned",
        (type(s.algorithm),),
        {"client_final": lambda self, carry, ctx: poisoned(*super(type(self), self).client_final(carry, ctx), ctx)},
    )

    def poisoned(uploads, state, ctx):
        bad = ctx.client.num_samples == float(s.engine.partition.num_train[1])
        return {**uploads, "change": torch.where(bad, torch.nan, uploads["change"])}, state

    (trained,) = s.round(1, [clients])
    assert trained.accepted.tolist() == [True, False, True]
    assert trained.evaluation.clients.tolist() == [0, 1, 2]
    ends = np.cumsum(before.num_samples)
    own = slice(ends[0], ends[1])
    np.testing.assert_allclose(trained.evaluation.probabilities[own], before.probabilities[own], atol=1e-6)
    assert not np.allclose(trained.evaluation.probabilities[: ends[0]], before.probabilities[: ends[0]], atol=1e-6)


def test_a_method_may_use_the_model_where_it_begins_and_ends():
    (run,) = prepare(tiny(algorithm={"name": "methods:UsesItsModel"}))
    assert run.layout.num_shared


def test_what_the_server_has_nothing_of_is_not_read():
    s = Simulation(algorithm={"name": "pfedla", "embedding": 2, "hidden": 3})
    s.round(0, [[1, 4]])
    rows = s.server.rows
    assert rows.known(np.array([1, 2, 4, 9])).tolist() == [True, False, True, False]
    part, whole = rows.named(EVERYONE, ["model"])["model"], rows.named(EVERYONE)["model"]
    assert torch.equal(part, whole)
