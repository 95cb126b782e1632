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

from raysim.errors import ClientError, ConfigError, Stopped
from raysim.storage.personal_states import address
from raysim.training.aggregation import FixedPoint, PartialSum, combine, merged
from raysim.training.tasks import Evaluate, EvaluateGlobal, TaskResult, Train, TrainingReport
from raysim.workers import actor_pool, dispatch, worker
from raysim.workers.actor_pool import ActorPool
from raysim.workers.dispatch import Dispatch
from raysim.workers.run_setup import Machine

from configs import tiny


class FakeRay:
    """As much of Ray as a pool uses: calls to an actor run in order, actors run in any order and die at any moment."""

    ObjectRef = object

    def __init__(self, seed, death):
        self.random, self.death, self.actors, self.deaths = random.Random(seed), death, [], 0
        self.num_nodes, self.names, self.code = 1, ["AVX2"] * 3, "its code"
        self.actors_per_gpu = 0  # 0: there are no GPUs
        self.deadly = set()  # names of calls and indices of tasks that kill every actor

    def nodes(self):
        return [{"NodeID": f"node {i}", "Alive": True} for i in range(self.num_nodes)]

    def put(self, value):
        return value

    def kill(self, actor):
        actor.die()

    def step(self):
        self.random.choice([actor for actor in self.actors if actor.can_step]).step()

    def wait(self, refs, num_returns, timeout):
        for _ in range(self.random.randint(1, 4) if timeout else 0):
            if any(actor.can_step for actor in self.actors):
                self.step()
        ready = [ref for ref in refs if hasattr(ref, "value")]
        self.random.shuffle(ready)
        return ready[:num_returns], []

    def get(self, ref, timeout=None):
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
        if name not in ("ping", "configure", "open_states", "set_readers", "run", "partial_sum", "merged"):
            raise AttributeError(name)
        return types.SimpleNamespace(remote=lambda *arguments: self.call(name, arguments))

    def call(self, name, arguments):
        ref = FakeRef()
        if self.dead:
            ref.value = ActorDiedError()
        else:
            self.queue.append((name, arguments, ref))
        return ref

    @property
    def can_step(self):
        """Whether its next call has all that other calls give it."""
        return bool(self.queue) and all(hasattr(a, "value") for a in self.queue[0][1] if isinstance(a, FakeRef))

    def step(self):
        name, arguments, ref = self.queue.pop(0)
        when = self.ray.random.random()
        poisoned = name in self.ray.deadly or (name == "run" and arguments[0].index in self.ray.deadly)
        if when < self.ray.death / 2 or poisoned:
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

    def do_ping(self):
        pass

    def do_configure(self, _):
        self.partial = PartialSum(-1)
        at, per_gpu = self.ray.actors.index(self), self.ray.actors_per_gpu
        number = at % self.ray.num_nodes
        gpu = str(at // per_gpu) if per_gpu else ""  # Ray fills one GPU after another
        return Machine("cpu", self.ray.names[number], self.ray.code, f"node {number}", 0, "its log", gpu)

    def do_open_states(self, *_):
        pass

    do_set_readers = do_open_states

    def do_run(self, task, *_):
        if isinstance(task, Train):
            if self.partial.round != task.round:
                self.partial = PartialSum(task.round)
            self.partial.add(task.index, {"shared": FixedPoint(np.array([task.clients.sum()]), len(task.clients), 100)})
        return TaskResult(task, NOTHING)

    def do_partial_sum(self, round_):
        return self.partial if self.partial.round == round_ else PartialSum(round_)

    def do_merged(self, round_, *refs):
        """A call whose argument is an error fails with it."""
        errors = [ref.value for ref in refs if isinstance(ref.value, Exception)]
        return errors[0] if errors else merged([ref.value for ref in refs], round_)


class FakeStates:
    """Numbers the nodes."""

    def number(self, node_id):
        return int(node_id.split()[1])

    def at(self, node):
        return node, None, {}

    def log(self, node, path):
        return f"the end of {path}"


def make_pool(size, stop=None, said=None, **changes):
    pool = ActorPool(lambda: size, {}, [], stop or threading.Event(), (said if said is not None else []).append)
    configure(pool, **changes)
    return pool


def configure(pool, **changes):
    return pool.configure(
        types.SimpleNamespace(config=tiny(**changes), algorithm_digest="its code", images_digest=""), FakeStates()
    )


def same(task, node):
    return task


def run(pool, round_, tasks, place=same, watch=lambda _: None):
    """Run tasks to their end; ``watch`` sees how far they are."""
    steps = Dispatch(pool, round_, tasks, 0, None, place).run()
    while True:
        try:
            watch(next(steps))
        except StopIteration as end:
            return end.value


@pytest.fixture
def fake(monkeypatch):
    def make(seed, death):
        ray = FakeRay(seed, death)
        actor_class = types.SimpleNamespace(options=lambda **_: types.SimpleNamespace(remote=lambda *_: FakeActor(ray)))
        monkeypatch.setattr(actor_pool, "ray", ray)
        monkeypatch.setattr(dispatch, "ray", ray)
        monkeypatch.setattr(worker, "ray", ray)
        monkeypatch.setattr(actor_pool, "ClientActor", actor_class)
        return ray

    return make


NOTHING = TrainingReport(np.ones(1, bool), {}, {}, {}, None)


def task_of(kind, index, round_=0, read=0, samples=1):
    ids = np.array([index])
    more = {"weights": {}, "reports": np.ones(1, bool)} if kind is Train else {}
    return kind(round=round_, index=index, clients=ids, read=np.atleast_1d(read), samples=samples, **more)


def tasks_of(round_, num_train, num_evaluate, evaluate=Evaluate):
    kinds = [Train] * num_train + [evaluate] * num_evaluate
    return [task_of(kind, i, round_) for i, kind in enumerate(kinds)]


def test_every_sum_is_complete_whoever_dies_and_whenever(fake, caplog, monkeypatch):
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(actor_pool, "MAX_STARTS", 10**6)
    deaths, after_training, met, retried = 0, 0, 0, Counter()
    for seed in range(300):
        ray = fake(seed, death=(0, 0.03, 0.1)[seed % 3])
        ray.num_nodes, ray.names = 1 + seed // 4 % 4, ["AVX2"] * 4
        pool = make_pool((1, 2, 3, 4, 7, 11)[seed % 6], resources={"max_retries": 10**6})
        for round_ in range(3):
            tasks = tasks_of(round_, num_train=1 + seed % 7, num_evaluate=seed % 5)
            attempts = {}

            def place(task, node, attempts=attempts):
                before = attempts.get(task.index)
                retried[task.kind] += before is not None
                fresh = task
                if isinstance(task, Train):
                    fresh = replace(task, write=np.array([0]) if before is None else before.write + 1)
                attempts[task.index] = fresh
                return fresh

            done = run(pool, round_, tasks, place)
            assert done.dropped == []
            assert [result.task for result in done.results] == [attempts[i] for i in range(len(tasks))]
            trained = [task for task in tasks if isinstance(task, Train)]
            sums = combine(done.sums, round_, {task.index for task in trained}).sums
            assert sums["shared"].total[0] == sum(task.clients[0] for task in trained)
            assert sums["shared"].weight == len(trained)
            met += len(done.sums) == 1 and len({result.actor for result in done.results[: len(trained)]}) > 1
            evaluated = run(pool, round_, tasks_of(round_, 0, 3))
            assert (len(evaluated.results), evaluated.sums) == (3, [])
            after_training += any(isinstance(task, Train) and task.write[0] > 1 for task in attempts.values())
        deaths += ray.deaths
    assert deaths > 300
    assert retried["train"] > 300
    assert met > 200  # sums of several actors arrived as one
    assert after_training > 10  # some client batches were lost more than once


def test_tasks_that_lose_their_actor_every_time_are_named(fake):
    fake(0, death=0.0).deadly = {1}
    pool = make_pool(2)
    with pytest.raises(
        ClientError, match=r"(?s)round 5: the actors that ran clients \[1\] died 4 times.*the end of its log"
    ):
        run(pool, 5, tasks_of(5, 3, 0))


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_run_goes_on_without_clients_that_kill_their_actors_if_asked_to(fake, kind):
    fake(0, death=0.0).deadly = {1}
    said = []
    pool = make_pool(2, said=said, resources={"max_retries": 1}, cohort={"on_failure": "drop"})
    tasks = tasks_of(5, 3, 0) if kind == "train" else tasks_of(5, 0, 3)
    done = run(pool, 5, tasks)
    assert [task.index for task in done.dropped] == [1]
    assert [result.task.index for result in done.results] == [0, 2]
    assert said == ["round 6 goes on without clients [1]: their actors died 2 times"]
    if kind == "train":
        assert combine(done.sums, 5, {0, 2}).sums["shared"].total[0] == 2


def test_the_shared_model_can_not_be_dropped(fake):
    fake(0, death=0.0).deadly = {1}
    pool = make_pool(2, resources={"max_retries": 1}, cohort={"on_failure": "drop"})
    tasks = tasks_of(5, 0, 3, EvaluateGlobal)
    with pytest.raises(ClientError, match=r"clients \[1\] died 2 times"):
        run(pool, 5, tasks)


def test_an_actor_that_hangs_is_replaced(fake, monkeypatch):
    ray = fake(0, death=0.0)
    pool = make_pool(2, resources={"client_timeout": 5.0})
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    hung = pool.workers[0].handle
    hung.step = lambda: now.__setitem__(0, now[0] + 1.0)  # time passes, nothing is done
    done = run(pool, 0, tasks_of(0, 4, 0))
    assert len(done.results) == 4
    assert pool.workers[0].handle is not hung
    assert hung.dead
    assert now[0] >= 5
    assert ray.deaths == 1


def test_a_node_that_joins_is_used_from_the_next_round_on(fake):
    ray = fake(0, death=0.0)
    size = [2]
    pool = ActorPool(lambda: size[0], {}, [], threading.Event(), print)
    configure(pool)
    run(pool, 0, tasks_of(0, 4, 0))
    assert len(pool.workers) == 2
    ray.num_nodes, size[0] = 2, 4
    done = run(pool, 1, tasks_of(1, 9, 0))
    assert len(pool.workers) == 4
    assert combine(done.sums, 1, set(range(9))).sums["shared"].weight == 9
    ray.num_nodes = 1  # one that is lost takes no worker from the list: it is waited for
    run(pool, 2, tasks_of(2, 4, 0))
    assert len(pool.workers) == 4


def test_tasks_go_where_their_states_are(fake):
    ray = fake(0, death=0.0)
    ray.num_nodes = 2
    pool = make_pool(2)
    assert [each.node for each in pool.workers] == [0, 1]
    on_node = [address(i % 2, np.array([i])) for i in range(6)]
    tasks = [task_of(Evaluate, i, read=where) for i, where in enumerate(on_node)]
    nodes = {}

    def place(task, node):
        nodes[task.index] = node
        return task

    run(pool, 0, tasks, place)
    assert [nodes[i] for i in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("actors", "cohort", "working"),
    [(8, 8, 8), (16, 8, 8), (32, 8, 8), (32, 5, 5), (8, 64, 8), (16, 64, 8), (32, 64, 8)],
)
def test_a_cohort_works_on_as_many_gpus_as_it_can(fake, actors, cohort, working):
    fake(0, death=0.0).actors_per_gpu = actors // 8
    pool = make_pool(actors)
    assert len({each.machine.gpus for each in pool.workers}) == 8
    Dispatch(pool, 0, tasks_of(0, cohort, 0), 0, None, same)._hand_out()
    assert len({each.machine.gpus for each in pool.workers if each.running}) == working


def test_sums_that_are_lost_again_and_again_end_the_run(fake):
    ray = fake(0, death=0.0)
    ray.deadly = {"partial_sum"}
    pool, trained = make_pool(2, resources={"max_retries": 2}), []

    def place(task, node):
        trained.append(task.index)
        return task

    dispatch = Dispatch(pool, 4, tasks_of(4, 3, 0), 0, None, place, sum_bytes=10**9)
    with pytest.raises(
        ClientError, match=r"round 4: partial sums, up to 1000 MB each, were lost 3 times .* their actors died"
    ):
        list(dispatch.run())
    assert len(trained) <= 9  # three times each


def test_large_sums_get_more_time(fake, monkeypatch):
    ray = fake(0, death=0.0)
    pool, limits, get = make_pool(11), [], ray.get
    ray.get = lambda ref, timeout=None: (limits.append(timeout), get(ref))[1]
    list(Dispatch(pool, 0, tasks_of(0, 22, 0), 0, None, same, sum_bytes=10**9).run())
    # Eleven sums meet in groups of four, in three steps at most, each of four times a gigabyte.
    assert [limit for limit in limits if limit is not None] == [60 + 3 * 4 * 100]


def test_one_actor_that_keeps_its_sum_takes_none_from_the_others(fake, monkeypatch):
    ray = fake(0, death=0.0)
    pool = make_pool(3, resources={"client_timeout": 5.0})
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    hung = pool.workers[0].handle
    step = hung.step

    def keep_the_sum():
        if hung.queue[0][0] == "partial_sum":
            now[0] += 1.0  # time passes, nothing is done
        else:
            step()

    hung.step = keep_the_sum
    done = run(pool, 0, tasks_of(0, 9, 0))
    assert len(done.results) == 9
    assert combine(done.sums, 0, set(range(9))).sums["shared"].weight == 9
    assert ray.deaths == 1
    assert hung.dead


def test_mixed_machines_are_refused(fake):
    ray = fake(0, death=0.0)
    ray.num_nodes, ray.names = 2, ["AVX2", "AVX512"]
    with pytest.raises(ConfigError, match="resources.allow_mixed: the cluster has AVX2 and AVX512"):
        make_pool(2)
    make_pool(2, resources={"allow_mixed": True})


def test_actors_that_never_start_end_the_run(fake):
    fake(0, death=0.0).deadly = {"configure"}
    with pytest.raises(ClientError, match="client actor 0 can't be started"):
        make_pool(1)


def test_an_actor_that_hangs_while_it_gets_ready_is_replaced(fake, monkeypatch):
    ray = fake(0, death=0.0)
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    pool = ActorPool(lambda: 2, {}, [], threading.Event(), print)
    hung = pool.workers[1].handle
    answer = hung.step

    def only_says_that_it_is_there():
        now[0] += 1
        if hung.queue[0][0] == "ping":
            answer()

    hung.step = only_says_that_it_is_there
    configure(pool, resources={"client_timeout": 5})  # goes on with the other one after a minute
    done = run(pool, 0, tasks_of(0, 40, 0))
    assert len(done.results) == 40
    assert pool.workers[1].handle is not hung
    assert hung.dead
    assert ray.deaths == 1
    assert now[0] > 60


def test_an_actor_with_other_code_is_refused(fake):
    ray = fake(0, death=0.0)
    pool = make_pool(1)
    ray.code = "edited"
    pool.replace(pool.workers[0])
    with pytest.raises(ConfigError, match="its source was changed while the run is under way"):
        run(pool, 0, tasks_of(0, 4, 0))


def test_actors_that_can_not_be_placed_are_waited_for_with_a_message(fake, monkeypatch):
    ray = fake(0, death=0.0)
    now, said = [0.0], []
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    pool = ActorPool(lambda: 2, {}, [], threading.Event(), said.append)
    pool.workers[1].handle.step = lambda: now.__setitem__(0, now[0] + 1.0)
    configure(pool)
    assert said == [
        "waiting for Ray to start 1 of 2 actors: is the cluster busy?; the run starts with 1",
    ]
    done = run(pool, 0, tasks_of(0, 4, 0))
    assert combine(done.sums, 0, {0, 1, 2, 3}).sums["shared"].weight == 4
    assert ray.deaths == 0


def test_a_run_can_be_stopped_while_it_waits(fake):
    fake(0, death=0.0)
    stop = threading.Event()
    pool = make_pool(1, stop)
    with pytest.raises(Stopped):
        run(pool, 0, tasks_of(0, 3, 0), watch=lambda _: stop.set())


def test_the_longest_run_first_two_in_flight_and_at_the_end_for_the_first_idle_actor(fake):
    ray = fake(0, death=0.0)
    pool = make_pool(2)
    sizes = {0: 5, 1: 80, 2: 10, 3: 20, 4: 40, 5: 1}
    in_flight = []

    def watch(_):
        in_flight.append([[int(t.clients[0]) for t in each.running] for each in pool.workers])

    done = run(pool, 0, [task_of(Evaluate, i, samples=n) for i, n in sizes.items()], watch=watch)
    assert [r.task.index for r in done.results] == [0, 1, 2, 3, 4, 5]
    # 80 and 40 to one actor each, 20 and 10 behind the shorter and the longer, then one at a time
    assert in_flight[0] == [[1, 2], [4, 3]]
    assert all(len(a) + len(b) <= 4 for a, b in in_flight)
    assert ray.deaths == 0


def test_what_a_failed_run_left_behind_is_no_part_of_the_next(fake):
    fake(0, death=0.0)
    pool = make_pool(2)

    def fail(_):
        raise ClientError("a bug")

    with pytest.raises(ClientError, match="a bug"):
        run(pool, 0, tasks_of(0, 6, 0), watch=fail)
    assert any(each.running for each in pool.workers)
    configure(pool)
    done = run(pool, 0, tasks_of(0, 2, 0))
    assert [int(r.task.clients[0]) for r in done.results] == [0, 1]
    assert combine(done.sums, 0, {0, 1}).sums["shared"].weight == 2
