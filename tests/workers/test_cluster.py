import threading

import pytest

from raysim.config.sections.running import ResourcesConfig
from raysim.workers.cluster import connect, using_ray


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


@pytest.fixture
def fake(monkeypatch):
    """What was asked of Ray, which is there once it was started."""
    calls = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: [c for c in calls if c != "said"][-1:] == ["init"])
    monkeypatch.setattr("ray.init", lambda **keys: calls.append("init"))
    monkeypatch.setattr("ray.shutdown", lambda: calls.append("shutdown"))
    return calls


def test_the_last_thread_that_uses_a_cluster_ends_it(fake):
    first_is_in, first_may_go, second_may_go = threading.Event(), threading.Event(), threading.Event()

    def use(is_in, may_go):
        with using_ray(lambda: connect(asked())):
            is_in.set()
            may_go.wait(10)

    second_is_in = threading.Event()
    threads = [
        threading.Thread(target=use, args=(first_is_in, first_may_go)),
        threading.Thread(target=use, args=(second_is_in, second_may_go)),
    ]
    threads[0].start()
    assert first_is_in.wait(10)
    threads[1].start()
    assert second_is_in.wait(10)
    first_may_go.set()
    threads[0].join(10)
    assert fake == ["init"]  # the second one is still at work
    second_may_go.set()
    threads[1].join(10)
    assert fake == ["init", "shutdown"]


def test_a_cluster_that_was_there_before_stays(fake):
    fake.append("init")
    with using_ray(lambda: pytest.fail("there is one")) as warning:
        assert warning is None
    assert fake == ["init"]


def test_a_start_that_fails_leaves_no_user_behind(fake):
    def fail():
        raise ConnectionError("no cluster")

    for _ in range(2):
        with pytest.raises(ConnectionError), using_ray(fail):
            pass
    with using_ray(lambda: connect(asked())):
        pass
    assert fake == ["init", "shutdown"]


def test_a_long_folder_for_temporary_files_is_not_used_for_sockets(monkeypatch, tmp_path):
    started = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda **keys: started.update(keys))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert connect(asked(num_actors=1)) == (True, None)
    assert started["_temp_dir"] is None
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/slurm/job.1234567/user/tmp/x")
    _, warning = connect(asked(num_actors=1))
    assert started["_temp_dir"].startswith("/tmp/ray-")
    assert f"Ray's files are in {started['_temp_dir']}" in warning
