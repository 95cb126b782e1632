"""Tasks: what each kind computes, and a batch cut down to one of its clients."""

import numpy as np
import pytest

from raysim.training.aggregation import Weights
from raysim.training.tasks import (
    AdaptNewClients,
    Evaluate,
    EvaluateGlobal,
    EvaluateNewClients,
    TaskResult,
    Train,
    TrainingReport,
    evaluations_of,
    trained_in,
)

from simulation import Simulation

IDS = np.array([3, 1, 2])


def train(**more):
    shares = {"samples": Weights(np.array([5, 3, 2]), 10), "uniform": Weights(np.ones(3, int), 3)}
    return Train(round=1, index=4, clients=IDS, read=IDS, weights=shares, reports=np.array([True, False, True]), **more)


def test_one_client_of_a_batch_keeps_what_is_its_own():
    one = train(
        work_share=np.array([1.0, 0.5, 0.2]), messages={"m": np.arange(6, dtype=np.float32).reshape(3, 2)}
    ).of_one(1)
    assert (one.clients.tolist(), one.read.tolist(), one.reports.tolist(), one.work_share.tolist()) == (
        [1],
        [1],
        [False],
        [0.5],
    )
    assert one.messages["m"].tolist() == [[2, 3]]
    assert {name: w.shares.tolist() for name, w in one.weights.items()} == {"samples": [0.3], "uniform": [1 / 3]}
    assert one.key == (1, 4)
    adapt = AdaptNewClients(round=1, index=0, clients=IDS, read=IDS, messages={"m": np.ones((3, 2), np.float32)})
    assert adapt.of_one(2).messages["m"].shape == (1, 2)
    assert Evaluate(round=1, index=0, clients=IDS, read=IDS).of_one(0).clients.tolist() == [3]


def test_kinds_are_those_of_the_timeline():
    kinds = {kind.kind: kind.passes for kind in (Train, Evaluate, EvaluateGlobal, EvaluateNewClients, AdaptNewClients)}
    assert kinds == {"train": 3.0, "evaluate": 1.0, "global": 1.0, "unadapted": 1.0, "adapted": 3.0}


@pytest.mark.parametrize("algorithm", ["fedavg", "fedperfix"])
def test_each_kind_computes_what_the_engine_does(algorithm):
    simulation = Simulation(algorithm={"name": algorithm}, evaluate={"new_clients": 2, "adapt_epochs": 2})
    engine, broadcast = simulation.engine, simulation.broadcast
    states = simulation.states[:3]
    trained = train(evaluate=True, sensitivity=True).compute(engine, broadcast, states)
    assert trained.clients.tolist() == IDS.tolist()
    assert trained.evaluation is not None
    assert "sensitivity.directions" in trained.sums
    assert train().compute(engine, broadcast, states).evaluation is None
    evaluated = Evaluate(round=1, index=0, clients=IDS, read=IDS).compute(engine, broadcast, states)
    expected = engine.evaluate(1, IDS, broadcast, states)
    assert np.array_equal(evaluated.probabilities, expected.probabilities)
    new = np.array([8, 9])
    before = EvaluateNewClients(round=1, index=0, clients=new, read=new).compute(engine, broadcast, states[:2])
    after = AdaptNewClients(round=1, index=1, clients=new, read=new).compute(engine, broadcast, states[:2])
    assert before.clients.tolist() == after.clients.tolist() == [8, 9]
    assert not np.array_equal(before.probabilities, after.probabilities)
    if algorithm == "fedavg":
        shared = EvaluateGlobal(round=1, index=0, clients=IDS, read=IDS).compute(engine, broadcast, states)
        assert shared.correct.tolist() == evaluated.correct.tolist()


def test_new_clients_are_evaluated_before_anything():
    """Also before the adaptation that a method does for every evaluation."""
    simulation = Simulation(algorithm={"name": "perfedavg", "adapt_lr": 0.5}, evaluate={"new_clients": 2})
    engine, broadcast, new = simulation.engine, simulation.broadcast, np.array([8, 9])
    before = EvaluateNewClients(round=1, index=0, clients=new, read=new).compute(
        engine, broadcast, simulation.states[:2]
    )
    assert np.array_equal(before.probabilities, engine.evaluate_global(new, broadcast).probabilities)


def test_results_are_told_apart_by_the_kind_of_their_task():
    simulation = Simulation()
    task = train(evaluate=True)
    report = TrainingReport.of(task.compute(simulation.engine, simulation.broadcast, simulation.states[:3]))
    evaluate = Evaluate(round=1, index=0, clients=IDS, read=IDS)
    other = evaluate.compute(simulation.engine, simulation.broadcast, simulation.states[:3])
    results = [TaskResult(task, report), TaskResult(evaluate, other)]
    assert trained_in(results) == [(task, report)]
    assert evaluations_of(results, Evaluate) == [other]
    assert evaluations_of(results, Train, Evaluate) == [report.evaluation, other]
    assert evaluations_of(results, EvaluateGlobal) == []
