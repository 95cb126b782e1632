"""The rounds of a run, on an engine in this process that does its tasks in any order."""

import numpy as np
import pytest
import ray
import torch
from test_training import Simulation

from raysim.training.aggregation import PartialSum
from raysim.workers.dispatch import Done
from raysim.workers.node_states import StateNodes
from raysim.federation.rounds import Run
from raysim.training.tasks import RunSetup, TaskResult


class ShuffledPool:
    """Does the work of a pool of actors: tasks complete in a random order, on a random one of three partial sums."""

    def __init__(self, engine, states, seed):
        self.engine, self.rng, self.slots = engine, np.random.default_rng(seed), states.own
        self.workers, self.log = [None] * 3, []

    def run(self, round_, tasks, version, broadcast, ready, report):
        tensors = {name: torch.from_numpy(v.copy()) for name, v in ray.get(broadcast).items()}
        parts, results = [PartialSum(round_) for _ in self.workers], {}
        for task in self.rng.permutation(np.array(tasks, object)):
            self.log.append((round_, task.kind, task.round, version))
            results[task.index] = self.do(ready(task, 0), tensors, parts[self.rng.integers(3)])
        return Done([results[task.index] for task in tasks], parts, [])

    def do(self, task, broadcast, part):
        engine, states = self.engine, self.slots.read(task.read, self.engine.initial_state)
        if task.kind == "global":
            return TaskResult(task, None, {}, {}, engine.evaluate_global(task.round, task.clients, broadcast))
        if task.kind in ("evaluate", "unadapted"):
            return TaskResult(task, None, {}, {}, engine.evaluate(task.round, task.clients, broadcast, states))
        messages = {k: torch.from_numpy(v) for k, v in task.messages.items()}
        t = engine.train(
            *(task.round, task.clients, task.weights, broadcast, states, messages, task.evaluate, True, task.pooled),
            work=task.work,
            newcomers=task.kind == "adapted",
        )
        if task.kind == "adapted":
            return TaskResult(task, None, {}, {}, t.evaluation)
        self.slots.write(task.write, t.states)
        part.add(task.index, t.sums)
        return TaskResult(task, t.accepted, t.metrics, t.squared_updates, t.evaluation)


def run(tmp_path, seed, **changes):
    simulation = Simulation(**{"rounds": 4, **changes})
    config, engine = simulation.config, simulation.engine
    labels, images = engine._samples._labels.numpy(), engine._samples._images.numpy()
    arrays = (images, labels, engine.partition, simulation.initial.numpy(), {})
    setup = RunSetup(config, *(ray.put(a) for a in arrays), 10, 1, "")
    states = StateNodes(engine.state_layout.size)
    pool, reports = ShuffledPool(engine, states, seed), []
    rounds = Run(setup, engine.layout, pool, states, reports.append)
    done = [[r.round for r in rounds.round()] for _ in range(config.rounds)]
    done.append([r.round for r in rounds.finish()])
    return rounds, done, pool, [r for r in reports if r.completed is not None]


def history(rounds):
    return [{"round": r.round, **r.metrics} for r in rounds.records.rounds]


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"optimizer": {"name": "adamw", "lr": 0.01}}},
        {"algorithm": {"name": "fedavg"}, "evaluate": {"every": 2}},
        {"algorithm": {"name": "fedbabu", "fine_tuning_steps": 1}, "evaluate": {"protocol": "aggregated"}},
        {"algorithm": {"name": "methods:Scaffold"}, "evaluate": {"clients": "cohort"}},
        {"algorithm": {"name": "centralized"}, "evaluate": {"new_clients": 2}},
        {"evaluate": {"new_clients": 3, "adapt_epochs": 2}},
    ],
    ids=str,
)
def test_no_bit_depends_on_the_order_in_which_tasks_complete(cluster, tmp_path, changes):
    runs = [run(tmp_path, seed, **changes)[0] for seed in range(3)]
    assert len({str(r.checksums()) for r in runs}) == 1
    results = [{k: v for k, v in row.items() if not k.startswith("system/")} for row in history(runs[0])]
    assert [row["round"] for row in results] == [0, 1, 2, 3]


def test_what_is_evaluated_after_the_server_step_runs_beside_the_next_round(cluster, tmp_path):
    rounds, done, pool, reports = run(tmp_path, 0, algorithm={"name": "fedavg"}, evaluate={"every": 2})
    # rounds 1 and 3 are evaluated; the shared model that they end with is the one that the next round starts from
    assert done == [[0], [], [1, 2], [], [3]]
    late = {(at, of, version) for at, kind, of, version in pool.log if kind == "global"}
    assert late == {(2, 1, 3), (3, 3, 5)}
    trained_with = {at: version for at, kind, _, version in pool.log if kind == "train"}
    assert trained_with == {0: 1, 1: 2, 2: 3, 3: 4}
    assert [r.round for r in reports] == [0, 1, 2, 3]
    evaluated = [sorted(row) for row in history(rounds) if "global/accuracy" in row]
    assert len(evaluated) == 2
    assert [r["round"] for r in history(rounds)] == [0, 1, 2, 3]


def test_new_clients_never_take_part_and_adapt_to_the_final_shared_parameters(cluster, tmp_path):
    new = {"new_clients": 3, "adapt_epochs": 2}
    changes = {"train": {"local_epochs": 1}, "cohort": {"fraction": 1.0}, "resources": {"clients_per_batch": 2}}
    rounds, done, pool, _ = run(tmp_path, 0, evaluate=new, **changes)
    assert done == [[0], [1], [2], [], [3]]
    kinds = [kind for _, kind, _, version in pool.log if version == 5]
    assert sorted(set(kinds)) == ["adapted", "unadapted"]
    assert rounds.index.addresses.shape == (8,)
    engine, ids = pool.engine, np.arange(8, 11)
    broadcast = {"shared": rounds.shared}
    initial = np.tile(engine.initial_state, (3, 1))
    before = engine.evaluate(3, ids, broadcast, initial)
    ones = {"samples": np.ones(3), "uniform": np.ones(3)}
    one_epoch = engine.train(3, ids, ones, broadcast, initial).evaluation
    after = engine.train(3, ids, ones, broadcast, initial, newcomers=True).evaluation
    found = rounds.records.new
    assert found["clients"].tolist() == [8, 9, 10]
    assert found["before"].tolist() == (before.correct / before.num_test).tolist()
    assert found["after"].tolist() == (after.correct / after.num_test).tolist()
    assert after.correct.tolist() != one_epoch.correct.tolist()
    last = history(rounds)[-1]
    assert last["new_clients/accuracy_after_mean"] == pytest.approx(found["after"].mean())
    assert last["new_clients/accuracy_before_std"] == pytest.approx(found["before"].std())
    assert not any(key.startswith("new_clients/") for row in history(rounds)[:-1] for key in row)


def test_nothing_is_late_when_all_is_evaluated_beside_the_training(cluster, tmp_path):
    _, done, pool, _ = run(tmp_path, 0)
    assert done == [[0], [1], [2], [3], []]
    assert all(at == of for at, _, of, _ in pool.log)


def test_padding_is_what_clients_of_unequal_size_cost(cluster, tmp_path):
    rounds, _, pool, _ = run(tmp_path, 0, resources={"clients_per_batch": 1})
    assert all(row["system/padding_fraction"] == 0 for row in history(rounds))
    rounds, _, pool, _ = run(tmp_path, 1, resources={"clients_per_batch": 8}, cohort={"fraction": 1.0}, rounds=1)
    sizes = pool.engine.partition.num_train
    assert history(rounds)[0]["system/padding_fraction"] == pytest.approx(1 - sizes.sum() / (8 * sizes.max()))
