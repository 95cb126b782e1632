"""What holds on a real cluster of several nodes: each check prints what it found, and the others go on.

    python tests/support/cluster_check.py --address auto --kill

Give it on the head node, where nothing else is at work, with raysim installed on every node. ``--kill`` kills a node, the
last one that is not the head's; start it again afterwards.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import raysim
from raysim.bench.stepped_driver import Driven, driven
from raysim.bench.workloads import WORKLOADS
from raysim.config.schema import Config
from raysim.experiments.status import RoundCompleted, Status
from raysim.workers.auto_resources import resolve_resources

from configs import TINY

ROUNDS = 4
MODEL = "model.kwargs={patch_size: 8, embed_dim: 192, depth: 2, num_heads: 3}"  # sums of 14 MB, quickly trained
SPARE = 5.0  # MB per round that an object store gets besides sums: reports, the broadcast's other copies


def alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def head() -> str:
    return str(ray.get_runtime_context().get_node_id())


def megabytes_created(node: dict[str, Any]) -> float:
    """That were ever put into a node's object store, those that came from other nodes included."""
    from ray._private.internal_api import node_stats

    where = node["NodeManagerAddress"], node["NodeManagerPort"]
    return float(node_stats(*where, include_memory_info=False).store_stats.cumulative_created_bytes / 1e6)


@contextmanager
def started(actors: int, most: int) -> Iterator[Driven]:
    """A run on so many actors; its clients and batches are the same for every number of them up to ``most``."""
    batches = max(16, 2 * most)
    sizes = [f"cohort.size={4 * batches}", "resources.clients_per_batch=4"]
    with driven(WORKLOADS["many"], [f"resources.num_actors={actors}", *sizes, MODEL], ROUNDS) as run:
        yield run


def places(run: Driven) -> list[tuple[str, str]]:
    """Node and GPUs of every actor."""
    asked = run.actor.__ray_call__.remote(lambda self: [(w.machine.node, w.machine.gpus) for w in self._pool.ready])
    found: list[tuple[str, str]] = ray.get(asked)
    return found


def placement_and_bytes(actors: int) -> str:
    with started(actors, actors) as run:
        where = places(run)
        run.round(0)
        before = {node["NodeID"]: megabytes_created(node) for node in alive()}
        for round in range(1, ROUNDS):
            run.round(round)
        into = {node["NodeID"]: (megabytes_created(node) - before[node["NodeID"]]) / (ROUNDS - 1) for node in alive()}
        shared = run.run.layout.num_shared
    per_node = sorted(sum(on == node for on, _ in where) for node in {on for on, _ in where})
    gpus = len({place for place in where if place[1]})
    found = f"{len(where)} actors on {len(per_node)} of {len(alive())} nodes ({per_node}) and {gpus} GPUs; "
    here, others = into.pop(head()), ", ".join(f"{megabytes:.1f}" for megabytes in into.values())
    found += f"MB per round into the head node {here:.1f}, into the others {others}; "
    found += f"a sum has {8 * shared / 1e6:.1f}, the broadcast {4 * shared / 1e6:.1f}"
    assert len(per_node) == len(alive()), found
    # The broadcast, the sums of its own actors, the sums of four other nodes at most, and the sum of all.
    own = sum(on == head() for on, _ in where)
    assert here < (4 + 2 * 8 * (own + 5)) * shared / 1e6 + SPARE, found
    return found


def same_bits(actors: int) -> str:
    shared: list[NDArray[np.float32]] = []
    for number in (1, actors):
        with started(number, actors) as run:
            for round in range(ROUNDS):
                run.round(round)
            shared.append(ray.get(run.actor.shared.remote()))
    largest = float(np.abs(shared[0] - shared[1]).max())
    assert np.array_equal(*shared), f"1 actor and {actors} on all nodes differ by {largest:g}"
    return f"the same after {ROUNDS} rounds on 1 actor and on {actors} on all nodes"


def seconds_per_round(actors: int) -> str:
    found = []
    for number in sorted({*(2**i for i in range(20) if 2**i <= actors), actors}):
        with started(number, actors) as run:
            seconds = [run.round(round)[0] for round in range(ROUNDS)]
        found.append(f"{number} actors {np.median(seconds[1:]):.2f}")
    return ", ".join(found)


@ray.remote(num_cpus=0, max_retries=0)
def end_of_node() -> None:
    os.kill(os.getppid(), signal.SIGKILL)  # Ray's own process on the node, and with it all others


def a_node_is_killed(actors: int) -> str:
    victim = next(node["NodeID"] for node in reversed(alive()) if node["NodeID"] != head())

    def kill() -> None:
        there = NodeAffinitySchedulingStrategy(victim, soft=False)
        end_of_node.options(scheduling_strategy=there).remote()

    expected, _ = checksums(actors, lambda: None)
    found, seconds = checksums(actors, kill)
    until = time.monotonic() + 90
    while victim in [node["NodeID"] for node in alive()]:  # Ray notices after some seconds without an answer
        assert time.monotonic() < until, f"the node {victim[:8]} could not be killed"
        time.sleep(1)
    assert found == expected, f"the bits are others without the node {victim[:8]}: {found} instead of {expected}"
    return f"the run went on without the node {victim[:8]} and ended with the same bits after {seconds:.0f} s"


def checksums(actors: int, after_round_3: Callable[[], None]) -> tuple[dict[str, str], float]:
    """Of a run of 40 rounds whose clients keep a head, which lies on the nodes; and its seconds."""
    seen = 0

    def watch(status: Status, *_: object) -> None:
        nonlocal seen
        before, seen = seen, seen + sum(isinstance(event, RoundCompleted) for event in status.events)
        if before < 3 <= seen:
            after_round_3()

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        asked = {**TINY, "rounds": 40, "checkpoint": {"every": 2}, "algorithm": {"name": "fedper"}}
        asked |= {"resources": {"num_actors": actors, "clients_per_batch": 2}}
        config = Config.model_validate({**asked, "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}})
        result = raysim.run(config, watch=watch)
    return result.runs[0].checksums, time.perf_counter() - begin


CHECKS: dict[str, Callable[[int], str]] = {
    "placement, bytes": placement_and_bytes,
    "bits": same_bits,
    "seconds per round": seconds_per_round,
}


@click.command()
@click.option("--address", default="auto", show_default=True, help="Of the cluster, as for ray.init.")
@click.option("--kill", is_flag=True, help="Kill a node, too, as the last check.")
def main(address: str, kill: bool) -> None:
    """Check a cluster of several nodes."""
    ray.init(address=address, log_to_driver=False)
    resources = Config.model_validate({"algorithm": {"name": "fedavg"}}).resources
    actors = resolve_resources(resources, most_batches=10**6).resources.num_actors
    assert isinstance(actors, int)
    click.echo(
        f"{len(alive())} nodes, {actors} actors; Ray {ray.__version__}, raysim in {Path(raysim.__file__).parent}"
    )
    failed = 0
    for name, check in (CHECKS | ({"a node is killed": a_node_is_killed} if kill else {})).items():
        try:
            click.echo(f"held    {name}: {check(actors)}")
        except Exception:
            failed += 1
            click.echo(f"FAILED  {name}:\n{traceback.format_exc()}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
