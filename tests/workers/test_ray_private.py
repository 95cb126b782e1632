"""Ray's private parts, each for itself: the test that fails names the one that another version of Ray has changed.

With Ray 2.45 and before, ``most_of_cluster`` fails: its function came with 2.46. All were tried with 2.47 and 2.60.
"""

import inspect
import logging
import os
from pathlib import Path

import pytest
import ray

from raysim.workers import ray_private

pytestmark = pytest.mark.usefixtures("cluster")


def test_a_logger_is_quiet():
    ray_private.be_quiet_about_authentication()
    name = "ray._private.authentication.authentication_token_setup"
    assert not logging.getLogger(name).isEnabledFor(logging.WARNING)


def test_most_of_a_cluster_without_autoscaler_is_nothing():
    assert not ray_private.most_of_cluster()


def test_the_report_of_the_older_autoscaler_is_read_if_there_is_one():
    report = ray_private.autoscaler_report()
    assert isinstance(report, dict)
    assert isinstance(report.get("active_nodes", {}), dict)


def test_a_worker_knows_the_file_of_its_stderr():
    @ray.remote(num_cpus=0)
    def worker():
        os.write(2, b"written to stderr\n")
        return ray_private.stderr_of_worker()

    assert "written to stderr" in Path(ray.get(worker.remote())).read_text()


def test_what_is_put_into_the_object_store_is_counted():
    before = ray_private.object_store_bytes()
    ref = ray.put(bytes(2_000_000))
    assert 2_000_000 <= ray_private.object_store_bytes() - before < 3_000_000
    del ref


def test_no_other_module_uses_private_parts_of_ray():
    root = Path(inspect.getfile(ray_private)).parents[1]
    private = ("ray._private", "ray.experimental", "_internal_kv")
    users = [path.name for path in root.rglob("*.py") if any(word in path.read_text() for word in private)]
    assert users == ["ray_private.py"]
