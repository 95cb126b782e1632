import pytest

from raysim.config.sections.running import ResourcesConfig
from raysim.errors import ConfigError
from raysim.workers.auto_resources import batches_on_gpus, clients_per_batch, resolve_resources, same_resources

from configs import tiny


@pytest.mark.parametrize(
    ("clients", "cohort", "parameters", "expected"),
    [
        (16, 8, 120_000, 2),  # a cohort of eight still makes batches of two
        (16, 3, 120_000, 1),
        (100, 64, 120_000, 8),  # at least eight batches
        (2000, 1000, 120_000, 64),
        (2000, 1000, 20_000_000, 1),  # a large model
    ],
)
def test_auto_clients_per_batch_is_a_function_of_the_configuration(clients, cohort, parameters, expected):
    config = tiny(data={"num_clients": clients}, cohort={"size": cohort}, resources={"clients_per_batch": "auto"})
    assert clients_per_batch(config, parameters, tokens=17) == expected


@pytest.mark.parametrize(("batches", "expected"), [("auto", 32), (32, 8), (200, 1), (3, 64)])
def test_as_many_batches_remain_as_are_asked_for(batches, expected):
    resources = {"clients_per_batch": "auto", "batches_per_round": batches}
    config = tiny(data={"num_clients": 1000}, cohort={"size": 256}, resources=resources)
    assert clients_per_batch(config, 120_000, tokens=17) == expected


@pytest.mark.parametrize(
    ("keys", "runs", "batches"),
    [
        ({}, 1, 32),  # four actors may share each of eight GPUs
        ({}, 2, 16),
        ({}, 33, 8),  # four runs at a time fill them with larger batches
        ({"concurrent_runs": 1}, 33, 32),
        ({"num_actors": 16}, 1, 16),
        ({"num_actors": 2}, 1, 8),
        ({"num_gpus_per_actor": 0.5}, 1, 16),
        ({"batches_per_round": 5}, 1, 5),
    ],
)
def test_on_gpus_every_actor_gets_a_batch(nodes, keys, runs, batches):
    nodes({"CPU": 32, "GPU": 4}, {"CPU": 32, "GPU": 4})
    assert batches_on_gpus(asked(**keys), runs) == batches


def test_a_given_size_is_kept():
    assert clients_per_batch(tiny(resources={"clients_per_batch": 5}), 10**9, 200) == 5


def test_the_runs_of_a_study_share_one_pool():
    same_resources([tiny(), tiny(resources={"clients_per_batch": 4})])
    with pytest.raises(ConfigError, match="share one pool"):
        same_resources([tiny(), tiny(resources={"num_actors": 4})])


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of nodes with so many CPUs and GPUs, as Ray would tell it."""

    def have(*each, autoscales=False):
        alive = [{"Alive": True, "Resources": {k: float(v) for k, v in r.items()}} for r in each]
        monkeypatch.setattr("ray.nodes", lambda: [*alive, {"Alive": False, "Resources": {}}])
        for module in ("auto_resources", "cluster"):
            monkeypatch.setattr(f"raysim.workers.{module}.autoscales", lambda: autoscales)

    return have


def asked(**keys):
    return ResourcesConfig.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "actors", "share"),
    [
        ({}, 2, 1.0),
        ({"num_actors": 3}, 3, 0.5),  # three thirds of two GPUs would leave one actor without a place
        ({"num_actors": 5}, 5, 0.3333),
        ({"num_actors": 4, "num_gpus_per_actor": 0.5}, 4, 0.5),
        ({"device": "cpu"}, 6, 0.0),
        ({"num_gpus_per_actor": 0.5}, 4, 0.5),
        ({"num_gpus_per_actor": 0.25}, 6, 0.25),  # room for eight, but there are six batches
        ({"num_gpus_per_actor": 2}, 1, 2.0),
    ],
)
def test_auto_on_two_gpus(nodes, keys, actors, share):
    nodes({"CPU": 8, "GPU": 2})
    placement = resolve_resources(asked(**keys), most_batches=6)
    assert (placement.resources.num_actors, placement.resources.num_gpus_per_actor) == (actors, share)
    if "num_gpus_per_actor" in keys:  # what is asked for is not changed by a trial
        assert resolve_resources(asked(**keys), most_batches=6, actors_per_gpu=3).resources == placement.resources
    assert placement.actor_options["num_gpus"] == share
    is_cuda = keys.get("device") != "cpu"
    assert placement.resources.device == ("cuda" if is_cuda else "cpu")
    assert ("runtime_env" in placement.actor_options) == is_cuda  # cuBLAS's workspace, for equal bits


@pytest.mark.parametrize(
    ("keys", "runs", "at_a_time", "actors"),
    [
        ({"concurrent_runs": "auto"}, 9, 1, 4),  # a run can use them all
        ({"concurrent_runs": "auto", "one_batch": True}, 9, 4, 1),
        ({"concurrent_runs": "auto", "one_batch": True}, 3, 3, 1),
        ({"concurrent_runs": 2}, 9, 2, 2),
        ({"concurrent_runs": 8}, 9, 4, 1),  # there is room for four actors
        ({"concurrent_runs": 8}, 3, 3, 1),
        ({"concurrent_runs": 2, "num_actors": 2}, 9, 2, 2),
    ],
)
def test_runs_at_a_time_share_what_there_is(nodes, keys, runs, at_a_time, actors):
    nodes({"CPU": 4})
    own = {key: value for key, value in keys.items() if key != "one_batch"}
    placed = resolve_resources(asked(**own), 1 if "one_batch" in keys else 6, runs=runs).resources
    assert (placed.concurrent_runs, placed.num_actors) == (at_a_time, actors)


@pytest.mark.parametrize(
    ("batches", "per_gpu", "runs", "at_a_time", "actors", "share"),
    [
        (8, 4, 33, 4, 8, 0.25),  # 32 places on 8 GPUs, of which a run fills 8
        (2, 4, 33, 16, 2, 0.25),
        (2, 4, 3, 3, 2, 1.0),  # six actors on eight GPUs
        (64, 4, 33, 1, 32, 0.25),  # a run can use them all
    ],
)
def test_runs_of_a_study_share_gpus_that_one_can_not_fill(nodes, batches, per_gpu, runs, at_a_time, actors, share):
    nodes({"CPU": 64, "GPU": 8})
    placed = resolve_resources(asked(), batches, per_gpu, runs=runs).resources
    found = (placed.concurrent_runs, placed.num_actors, placed.num_gpus_per_actor)
    assert found == (at_a_time, actors, share)


def test_placements_that_fit_are_not_refused(nodes):
    nodes({"CPU": 8, "GPU": 1})
    two = resolve_resources(asked(num_actors=1, concurrent_runs=2), 8, 4, runs=9).resources
    assert (two.concurrent_runs, two.num_actors, two.num_gpus_per_actor) == (2, 1, 0.5)
    for uneven in (({"CPU": 1, "GPU": 1}, {"CPU": 8, "GPU": 1}), ({"CPU": 4, "GPU": 4}, {"CPU": 16, "GPU": 1})):
        nodes(*uneven)
        placed = resolve_resources(asked(), 50, 4).resources
        assert placed.num_actors >= 3
        resolve_resources(placed, 50, 4)  # what was found fits


@pytest.mark.parametrize(
    ("cpus", "per_gpu", "batches", "actors", "share"), [(8, 3, 50, 6, 0.3333), (8, 4, 5, 5, 0.3333), (3, 4, 50, 3, 0.5)]
)
def test_as_many_actors_as_a_gpu_has_room_for(nodes, cpus, per_gpu, batches, actors, share):
    nodes({"CPU": cpus, "GPU": 2})
    placement = resolve_resources(asked(), batches, per_gpu)
    assert (placement.resources.num_actors, placement.resources.num_gpus_per_actor) == (actors, share)


@pytest.mark.parametrize(
    ("keys", "gpus", "message"),
    [
        ({"num_gpus_per_actor": 0.5}, 0, r"num_gpus_per_actor: 0\.5 asked, this node has 0 GPUs"),
        ({"device": "cuda"}, 0, r"'cuda' is asked for, but Ray sees no GPU"),
        ({"device": "cpu", "num_gpus_per_actor": 0.5}, 2, r"0\.5 asked with device 'cpu'"),
        ({"device": "cpu", "precision": "tf32"}, 2, r"precision: 'tf32' is a way in which GPUs multiply"),
        ({"num_gpus_per_actor": 0}, 2, r"0 asked with device 'cuda'"),
        ({"num_gpus_per_actor": 1.5}, 2, r"1\.5 is not possible"),
        (
            {"num_actors": 3, "num_gpus_per_actor": 0.6},
            2,
            r"3 actors with 0\.6 of a GPU and 1 CPUs each do not fit .* room for 2",
        ),
        (
            {"num_actors": 2, "num_gpus_per_actor": 2},
            2,
            r"2 actors with 2 of a GPU and 1 CPUs each do not fit .* room for 1",
        ),
        ({"num_actors": 9}, 0, r"9 actors with 1 CPUs each need 9 CPUs, this node has 8"),
    ],
)
def test_more_than_there_is(nodes, keys, gpus, message):
    nodes({"CPU": 8, "GPU": gpus})
    with pytest.raises(ConfigError, match=message):
        resolve_resources(asked(**keys), most_batches=6)


def test_several_nodes_are_used_but_an_actor_is_on_one_of_them(nodes):
    nodes({"CPU": 3}, {"CPU": 4}, {})
    assert resolve_resources(asked(), most_batches=50).resources.num_actors == 7
    assert resolve_resources(asked(num_cpus_per_actor=2), most_batches=50).resources.num_actors == 3
    with pytest.raises(ConfigError, match=r"8 actors with 1 CPUs each need 8 CPUs, the 3 nodes have 7"):
        resolve_resources(asked(num_actors=8), most_batches=50)
    with pytest.raises(ConfigError, match=r"2 actors with 3\.5 CPUs each do not fit on 3 nodes .* room for 1"):
        resolve_resources(asked(num_actors=2, num_cpus_per_actor=3.5), most_batches=50)
    nodes({"CPU": 3}, {"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 2})
    placed = resolve_resources(asked(), most_batches=50, actors_per_gpu=2).resources
    assert (placed.num_actors, placed.num_gpus_per_actor, placed.device) == (6, 0.5, "cuda")


def test_a_cluster_that_starts_nodes_on_demand_is_asked_for_what_is_not_there_yet(nodes):
    nodes({"CPU": 2}, autoscales=True)
    keys = {"num_actors": 8, "num_gpus_per_actor": 0.5, "device": "cuda"}
    assert resolve_resources(asked(**keys), most_batches=50).resources.num_actors == 8
    with pytest.raises(ConfigError, match="has no GPU yet; set num_actors and num_gpus_per_actor"):
        resolve_resources(asked(device="cuda"), most_batches=50)
