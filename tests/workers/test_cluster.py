from raysim.config.schema import ResourcesConfig
from raysim.workers.cluster import connect


def asked(**keys):
    return ResourcesConfig.model_validate(keys)


def test_a_local_cluster_gets_as_many_cpus_as_asked_for_with_a_warning(monkeypatch):
    started = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", lambda **keys: started.update(keys))
    monkeypatch.setattr("raysim.workers.cluster.usable_cpus", lambda: 4)
    was_started, warning = connect(asked(num_actors=3, num_cpus_per_actor=2))
    assert was_started
    assert started["num_cpus"] == 6
    assert started["address"] == "local"
    assert "3 actors with 2 CPUs each on a machine with 4; they will take turns" in warning
    assert connect(asked(num_actors=4)) == (True, None)
