"""The dispatch of rounds over actors that die at any moment (a fake Ray, thousands of rounds)."""

import logging
import random
import threading
import types
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError

from raysim import scheduling
from raysim.aggregation import FixedPoint, PartialSum, combine
from raysim.errors import ClientError
from raysim.scheduling import ActorPool, Costs, Stopped
from raysim.tasks import Task, TaskResult


class FakeRay:
    """As much of Ray as a pool uses: calls to an actor run in order, actors run in any order and die at any moment."""

    ObjectRef = object

    def __init__(self, seed, death):
        self.random, self.death, self.actors, self.deaths = random.Random(seed), death, [], 0

    def put(self, value):
        return value

    def kill(self, actor):
        actor.die()

    def step(self):
        self.random.choice([actor for actor in self.actors if actor.queue]).step()

    def wait(self, refs, num_returns, timeout):
        for _ in range(self.random.randint(1, 4) if timeout else 0):
            if any(actor.queue for actor in self.actors):
                self.step()
        ready = [ref for ref in refs if hasattr(ref, "value")]
        self.random.shuffle(ready)
        return ready[:num_returns], []

    def get(self, ref):
        while not hasattr(ref, "value"):
            self.step()
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value


class FakeRef:
    """Has a ``value`` once its call is done."""


class FakeActor:
    def __init__(self, ray):
        self.ray, self.queue, self.dead, self.partial = ray, [], False, None
        ray.actors.append(self)

    def __getattr__(self, name):
        if name not in ("configure", "run", "partial_sum"):
            raise AttributeError(name)
        return types.SimpleNamespace(remote=lambda *arguments: self.call(name, arguments))

    def call(self, name, arguments):
        ref = FakeRef()
        if self.dead:
            ref.value = ActorDiedError()
        else:
            self.queue.append((name, arguments, ref))
        return ref

    def step(self):
        name, arguments, ref = self.queue.pop(0)
        when = self.ray.random.random()
        if when < self.ray.death / 2:
            ref.value = ActorDiedError()
            self.die()
            return
        ref.value = getattr(self, f"do_{name}")(*arguments)
        if when < self.ray.death:
            self.die()

    def die(self):
        self.ray.deaths += not self.dead
        self.dead = True
        for _, _, ref in self.queue:
            ref.value = ActorDiedError()
        self.queue = []

    def do_configure(self, _):
        self.partial = PartialSum(-1)
        return {"device": "cpu"}

    def do_run(self, task, *_):
        if task.kind == "train":
            if self.partial.round != task.round:
                self.partial = PartialSum(task.round)
            self.partial.add(task.index, {"shared": FixedPoint(np.array([task.clients.sum()]), len(task.clients))})
        return TaskResult(task, None, {}, {}, None)

    def do_partial_sum(self, round_):
        return self.partial if self.partial.round == round_ else PartialSum(round_)


@pytest.fixture
def fake(monkeypatch):
    def make(seed, death):
        ray = FakeRay(seed, death)
        actor_class = types.SimpleNamespace(options=lambda **_: types.SimpleNamespace(remote=lambda *_: FakeActor(ray)))
        monkeypatch.setattr(scheduling, "ray", ray)
        monkeypatch.setattr(scheduling, "ClientActor", actor_class)
        return ray

    return make


def tasks_of(round_, num_train, num_evaluate):
    kinds = ["train"] * num_train + ["evaluate"] * num_evaluate
    slots = np.array([0])
    return [
        Task(kind, i, round_, np.array([i]), slots, slots if kind == "train" else None) for i, kind in enumerate(kinds)
    ]


def test_every_sum_is_complete_whoever_dies_and_whenever(fake, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(scheduling, "MAX_RETRIES", 10**6)
    deaths, after_training, retried = 0, 0, Counter()
    for seed in range(300):
        ray = fake(seed, death=(0, 0.03, 0.1)[seed % 3])
        pool = ActorPool(1 + seed % 4, {}, [], threading.Event())
        pool.configure(None, print)
        for round_ in range(3):
            tasks = tasks_of(round_, num_train=1 + seed % 7, num_evaluate=seed % 5)
            attempts = {task.index: task for task in tasks}

            def retry(task, attempts=attempts):
                retried[task.kind] += 1
                fresh = task if task.write is None else replace(task, write=task.write + 1)
                attempts[task.index] = fresh
                return fresh

            results, parts = pool.run(round_, tasks, 0, None, retry, lambda *_: None)
            assert [result.task for result in results] == [attempts[i] for i in range(len(tasks))]
            trained = [task for task in tasks if task.kind == "train"]
            sums = combine(parts, round_, {task.index for task in trained})
            assert sums["shared"].total[0] == sum(task.clients[0] for task in trained)
            assert sums["shared"].weight == len(trained)
            evaluated, none = pool.run(round_, tasks_of(round_, 0, 3), 0, None, retry, lambda *_: None)
            assert (len(evaluated), none) == (3, [])
            after_training += any(task.write is not None and task.write[0] > 1 for task in attempts.values())
        deaths += ray.deaths
    assert deaths > 300
    assert retried["train"] > 300
    assert after_training > 10  # some client batches were lost more than once


def test_tasks_that_lose_their_actor_every_time_are_named(fake):
    fake(0, death=0.0)
    pool = ActorPool(2, {}, [], threading.Event())
    pool.configure(None, print)

    def kill_everybody(*_):
        for worker in pool.workers:
            worker.handle.die()

    with pytest.raises(ClientError, match=r"round 5: the actors that ran clients \[\d\] died 4 times"):
        pool.run(5, tasks_of(5, 2, 0), 0, None, lambda task: task, kill_everybody)


def test_a_run_can_be_stopped_while_it_waits(fake):
    fake(0, death=0.0)
    stop = threading.Event()
    pool = ActorPool(1, {}, [], stop)
    pool.configure(None, print)
    with pytest.raises(Stopped):
        pool.run(0, tasks_of(0, 3, 0), 0, None, lambda task: task, lambda *_: stop.set())


def sized(kind, index, samples):
    return Task(kind, index, 0, np.array([index]), np.array([0]), np.array([0]), samples=samples)


def test_costs_are_measured_per_kind_and_guessed_before():
    costs = Costs()
    train, evaluate = sized("train", 0, 10), sized("evaluate", 1, 10)
    assert costs.expected(train) == 3 * costs.expected(evaluate)
    costs.measured(TaskResult(train, None, {}, {}, None, seconds=6.0))
    assert costs.expected(train) == pytest.approx(6.0)
    assert costs.expected(evaluate) == pytest.approx(2.0)  # in proportion, until it is measured itself
    costs.measured(TaskResult(evaluate, None, {}, {}, None, seconds=5.0))
    assert costs.expected(evaluate) == pytest.approx(5.0)
    costs.measured(TaskResult(evaluate, None, {}, {}, None, seconds=10.0))
    assert costs.expected(evaluate) == pytest.approx(6.0)


def test_the_longest_run_first_two_in_flight_and_at_the_end_for_the_first_idle_actor(fake):
    ray = fake(0, death=0.0)
    pool = ActorPool(2, {}, [], threading.Event())
    pool.configure(None, print)
    sizes = {0: 5, 1: 80, 2: 10, 3: 20, 4: 40, 5: 1}
    in_flight = []

    def watch(*_):
        in_flight.append([[int(t.clients[0]) for t in worker.running.values()] for worker in pool.workers])

    results, _ = pool.run(0, [sized("evaluate", i, n) for i, n in sizes.items()], 0, None, lambda t: t, watch)
    assert [r.task.index for r in results] == [0, 1, 2, 3, 4, 5]
    # 80 and 40 to one actor each, 20 and 10 behind the shorter and the longer, then one at a time
    assert in_flight[0] == [[1, 2], [4, 3]]
    assert all(len(a) + len(b) <= 4 for a, b in in_flight)
    assert ray.deaths == 0


def test_what_a_failed_run_left_behind_is_no_part_of_the_next(fake):
    fake(0, death=0.0)
    pool = ActorPool(2, {}, [], threading.Event())
    pool.configure(None, print)

    def fail(*_):
        raise ClientError("a bug")

    with pytest.raises(ClientError, match="a bug"):
        pool.run(0, tasks_of(0, 6, 0), 0, None, lambda task: task, fail)
    assert any(worker.running for worker in pool.workers)
    pool.configure(None, print)
    results, parts = pool.run(0, tasks_of(0, 2, 0), 0, None, lambda task: task, lambda *_: None)
    assert [int(r.task.clients[0]) for r in results] == [0, 1]
    assert combine(parts, 0, {0, 1})["shared"].weight == 2
