"""Two hosts and a link between them that is cut while a job runs: network namespaces on this machine, so it needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from clusters import ROOT, Cluster, Host, steps, until

ROUNDS = 40
SHORT = 3  # seconds without a link that nobody needs to notice
# A node that doesn't answer for about ten seconds counts as dead; by default it takes about a minute.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 5,
}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=20)


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True, timeout=20)
    return {line.split()[0] for line in listed.stdout.splitlines()}


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Each in its own network namespace, joined by a pair of virtual Ethernet devices."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("there is no command `ip` (package iproute2)")
    first, second = (f"raysim-{os.getpid()}-{name}" for name in ("head", "second"))
    try:
        try:
            ip("netns", "add", first)
            ip("netns", "add", second)
            ip("-n", first, "link", "add", "link0", "type", "veth", "peer", "name", "link0", "netns", second)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for i, name in enumerate((first, second), 1):
            ip("-n", name, "address", "add", f"10.213.0.{i}/24", "dev", "link0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "link0", "up")
        a, b = (Host(f"10.213.0.{i}", ("ip", "netns", "exec", name)) for i, name in enumerate((first, second), 1))
        yield a, b
    finally:
        for name in namespaces() & {first, second}:
            ip("netns", "delete", name)  # and with it its end of the link
    assert not namespaces() & {first, second}


@contextmanager
def cut(host: Host) -> Iterator[None]:
    """No packet comes or goes."""
    name = host.prefix[-1]
    ip("-n", name, "link", "set", "link0", "down")
    try:
        yield
    finally:
        ip("-n", name, "link", "set", "link0", "up")


@pytest.mark.slow
def test_a_run_goes_on_after_the_link_to_a_node_was_cut(hosts, tmp_path):
    """After a short cut with the same actors; after a long one with others, on the node that is left."""
    shutil.copy(ROOT / "yaml" / "quickstart.yaml", tmp_path)
    head, second = hosts
    with Cluster(head, HEALTH) as cluster:
        cluster.start_mlflow()
        cluster.start_head(cpus=4)
        cluster.start_node("second", cpus=4, host=second)
        cluster.wait_for_mlflow()
        assert cluster.nodes_alive() == 2

        def logged() -> list[int]:
            # From the file, since the server is out of this process's reach.
            return next(iter(steps(cluster.store, "quickstart").values()), [])

        overrides = [f"rounds={ROUNDS}", "study=null", "resources.num_actors=4", "resources.device=cpu"]
        job = cluster.submit(tmp_path, ["python", "-m", "raysim", "run", "quickstart.yaml", *overrides])
        until(logged, 90, "a round is logged", alive=job)
        actors = cluster.client_actors()
        assert len(actors) == 4
        assert cluster.client_actors("second"), "no client actor on the second node"

        with cut(second):
            time.sleep(SHORT)
        before = len(logged())
        until(lambda: len(logged()) > before + 1, 60, "rounds are logged again", alive=job)
        assert cluster.client_actors() == actors
        assert len(logged()) < ROUNDS, "the run ended too early for the second cut"

        with cut(second):
            until(lambda: cluster.nodes_alive() == 1, 60, "Ray counts the node as dead", alive=job)
        until(lambda: job.poll() is not None, 120, "the job ends")
        assert job.returncode == 0, cluster.log("job")
        assert logged() == list(range(ROUNDS))
    assert not cluster.processes()
