"""Runs of one process that share their driver and actors, on real Ray."""

import os
import sys
import time

import pytest
import ray

import raysim
from raysim.experiments import session as module

from configs import tiny

pytestmark = pytest.mark.usefixtures("cluster")
WHERE = """
import os
import numpy as np

def who(results, labels):
    return {"pid": os.getpid()}

def first(round, num_clients, size, rng):
    return np.arange(size)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Takes changes; returns the result, the process of the driver, and seconds."""
    (tmp_path / "where.py").write_text(WHERE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "where", raising=False)

    def run(**changes):
        given = {"tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}, "resources": {"num_actors": 1}, **changes}
        begin = time.perf_counter()
        result = raysim.run(tiny(**given))
        return result, time.perf_counter() - begin

    return run


def process(session):
    return ray.get(session._driver.process.remote())


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_runs_share_processes_as_long_as_the_same_code_and_resources_are_asked_for(run, tmp_path):
    own = {"cohort": {"sampling": "where:first"}, "evaluate": {"metrics": ["where:who"]}}
    with raysim.session() as session:
        with pytest.raises(raysim.ConfigError, match="there is a session already"):
            raysim.session()
        first, slow = run()
        pid = process(session)
        again, fast = run()
        assert process(session) == pid
        assert again.runs[0].checksums == first.runs[0].checksums
        assert fast < slow
        run(seed=1, algorithm={"name": "fedavg"}, study=[{"name": "a"}, {"name": "b", "seed": 2}])
        assert process(session) == pid
        result, _ = run(**own)  # code of one's own is always imported anew
        assert session._driver is None
        assert not is_there(pid)
        assert "personalized/pid" in result.history
        (tmp_path / "where.py").write_text(WHERE.replace("os.getpid()", "1 // 0"))
        with pytest.raises(raysim.RunFailed, match="ZeroDivisionError"):
            run(**own)
        assert session._driver is None  # nothing is left of a run that failed
        run()
        last = process(session)
        (tmp_path / "mlflow.db").rename(tmp_path / "moved.db")
        run(resources={"num_actors": 2})  # another store, and other resources
        assert not is_there(last)
        last = process(session)
    assert module.current() is None
    until = time.monotonic() + 20
    while is_there(last) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_there(last)
