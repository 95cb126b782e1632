"""What a worker has, from hand-out to loss, with an actor that does nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from raysim.training.tasks import Evaluate, Train
from raysim.workers import worker as module
from raysim.workers.run_setup import Machine
from raysim.workers.worker import Worker, interleaved


class Handle:
    """Hands out a new reference for each call."""

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *_: object())


def task(kind, index):
    more = {"weights": {}, "reports": np.ones(1, bool)} if kind is Train else {}
    return kind(round=0, index=index, clients=np.array([index]), read=np.array([0]), **more)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def worker():
    return Worker(0, Handle())


def test_tasks_are_running_until_they_are_finished_and_training_ones_stay_in_the_sum(worker, clock):
    first, second, third = task(Train, 0), task(Evaluate, 1), task(Train, 2)
    for one in (first, second, third):
        worker.assign(one, 0, None)
    assert worker.running == [first, second, third]
    clock[0] += 5
    assert worker.seconds_on_task == 5
    assert worker.finish(worker.refs[0]) == first
    assert worker.seconds_on_task == 0  # of the next one
    assert worker.finish(worker.refs[0]) == second
    assert worker.summed == [first]
    assert worker.restart(Handle()) == [third, first]  # the one that it worked on first, then those in its sum
    assert (worker.running, worker.summed) == ([], [])


def test_a_sum_that_was_collected_is_not_lost_with_the_actor(worker):
    worker.assign(task(Train, 0), 0, None)
    worker.finish(worker.refs[0])
    worker.end_round()
    assert worker.restart(Handle()) == []


def test_an_actor_that_ray_did_not_place_is_not_late(worker, clock, monkeypatch):
    placed = []
    monkeypatch.setattr(module, "ray", SimpleNamespace(wait=lambda refs, num_returns, timeout: (placed, [])))
    worker.configure("setup")
    clock[0] += 1000
    assert worker.seconds_getting_ready() == 0
    placed.append("ping")
    assert worker.seconds_getting_ready() == 0
    clock[0] += 7
    assert worker.seconds_getting_ready() == 7
    worker.ready(Machine("cpu", "AVX2", "digest", "node", 1, "log"), node=2)
    assert (worker.answer, worker.node, worker.seconds_getting_ready()) == (None, 2, 0)


def test_what_an_earlier_run_left_is_forgotten_when_it_gets_ready_again(worker):
    worker.assign(task(Train, 0), 0, None)
    worker.finish(worker.refs[0])
    worker.assign(task(Train, 1), 0, None)
    worker.configure("setup")
    assert (worker.running, worker.summed, worker.machine) == ([], [], None)


def test_the_first_workers_are_on_different_gpus_and_nodes():
    places = [("a", "0"), ("a", "0"), ("a", "1"), ("b", "0"), ("a", "1"), ("b", "0"), ("b", "1")]
    workers = []
    for number, (node, gpus) in enumerate(places):
        workers.append(Worker(number, Handle()))
        workers[-1].ready(Machine("cuda", "H100", "digest", node, 1, "log", gpus), node=0)
    found = [places[worker.number] for worker in interleaved(workers)]
    assert found[:4] == [("a", "0"), ("b", "0"), ("a", "1"), ("b", "1")]
    assert found[4:] == [("a", "0"), ("b", "0"), ("a", "1")]
    on_cpus = [Worker(number, Handle()) for number in range(3)]
    for each in on_cpus:
        each.ready(Machine("cpu", "AVX2", "digest", "a", 1, "log"), node=0)
    assert interleaved(on_cpus) == on_cpus
