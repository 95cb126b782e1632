"""The rounds of a run, on an engine in this process that does its tasks in any order."""

import numpy as np
import pytest
import ray
import torch

from raysim.federation.cohort import sample_cohort
from raysim.federation.evaluation_schedule import EvaluationSchedule
from raysim.federation.rounds import FederatedRun
from raysim.storage.checkpoint import newest
from raysim.storage.checkpoint_writer import CheckpointWriter
from raysim.storage.folder import Folder
from raysim.storage.records import RoundRecord
from raysim.training.aggregation import PartialSum, Weights
from raysim.training.local_training import LocalTraining
from raysim.training.tasks import Evaluate, TaskResult, Train, TrainingReport
from raysim.views import OF_CLIENTS
from raysim.workers.dispatch import Completed, Progress
from raysim.workers.remote_states import StateNodes
from raysim.workers.run_setup import RunSetup

from simulation import Simulation


class ShuffledPool:
    """Three workers in this process, and what they did: (round, kind of task, round of the task, version sent)."""

    drops = staticmethod(lambda task: False)
    """Which tasks kill every worker that runs them."""

    def __init__(self, engine, states, seed):
        self.engine, self.rng, self.slots = engine, np.random.default_rng(seed), states.own
        self.workers, self.log = [None] * 3, []


class ShuffledDispatch:
    """Tasks complete in a random order, on a random one of three partial sums."""

    def __init__(self, pool, round_, tasks, version, broadcast, place, sum_bytes, one_by_one):
        self.pool, self.round, self.tasks, self.version, self.place = pool, round_, tasks, version, place
        self.broadcast = {name: torch.from_numpy(v.copy()) for name, v in ray.get(broadcast).items()}

    def run(self):
        sums, results = [PartialSum(self.round) for _ in self.pool.workers], {}
        dropped = [task for task in self.tasks if self.pool.drops(task)]
        for task in self.pool.rng.permutation(np.array([t for t in self.tasks if t not in dropped], object)):
            self.pool.log.append((self.round, task.kind, task.round, self.version))
            results[task.key] = self.do(self.place(task, 0), sums[self.pool.rng.integers(3)])
            yield Progress(len(results), len(self.tasks), ())
        return Completed([results[task.key] for task in self.tasks if task.key in results], sums, dropped)

    def do(self, task, partial):
        engine = self.pool.engine
        computed = task.compute(engine, self.broadcast, self.pool.slots.read(task.read, engine.initial_state))
        if not isinstance(task, Train):
            return TaskResult(task, computed)
        if task.write is not None:
            self.pool.slots.write(task.write, computed.states)
        partial.add(task.index, computed.sums, computed.uploads)
        return TaskResult(task, TrainingReport.of(computed))


@pytest.fixture
def start(cluster, monkeypatch):
    """Takes a seed for the order of tasks, and maybe a checkpoint to go on from; returns a run and its pool."""
    monkeypatch.setattr("raysim.federation.rounds.Dispatch", ShuffledDispatch)

    def start(seed, checkpoint=None, **changes):
        simulation = Simulation(**{"rounds": 4, **changes})
        config, engine = simulation.config, simulation.engine
        data = engine.samples.data
        arrays = (data._images.numpy(), data._labels.numpy(), engine.partition, simulation.initial.numpy(), {})
        setup = RunSetup(config, *(ray.put(a) for a in arrays), 10, 1, "")
        states = StateNodes(engine.state_layout.size)
        pool = ShuffledPool(engine, states, seed)
        return FederatedRun(setup, engine.layout, pool, states, checkpoint), pool

    return start


@pytest.fixture
def run(start):
    """Takes a run to its end; returns it, the rounds that were complete with each call, the pool, and all records."""

    def to_the_end(seed, **changes):
        rounds, pool = start(seed, **changes)
        records, done = [], []
        for events in [*(rounds.round for _ in range(rounds.config.rounds)), rounds.finish]:
            complete = [event for event in events() if isinstance(event, RoundRecord)]
            records += complete
            done.append([record.round for record in complete])
        return rounds, done, pool, records

    return to_the_end


# A method of each kind: with a state of the server or the clients, rows of the server, uploads of each, messages, a server
# that trains, several shared models, other ranks.
OF_EACH_KIND = ["scaffold", "fedadam", "feddbe", "fedproto", "gpfl", "fedala"]
KNOWN = [
    "fedamp",
    "fedfomo",
    "fedpac",
    "apple",
    "ifca",
    "pfedhn",
    "pfedla",
    "fedtp",
    "fedkd",
    "feddpa",
    "flexlora",
    "hetlora",
]


@pytest.mark.parametrize("name", [*OF_EACH_KIND, *KNOWN, "methods:Known", "methods:Masked"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(start, run, tmp_path, name):
    """Of methods whose servers or clients keep more than parameters."""
    changes = {"algorithm": {"name": name}, "train": {"optimizer": {"lr": 0.02}}}
    expected, _, _, _ = run(0, **changes)
    rounds, _ = start(1, **changes)
    for _ in range(2):
        list(rounds.round())
    folder = Folder(str(tmp_path))
    size, rows = rounds.states.layout.size, rounds.server_rows
    writer = CheckpointWriter(folder, 2, {}, {}, rounds.states.read, 8, size, None, rows.read, rows.layout.size)
    writer.write(rounds.snapshot())
    writer.finished(wait=True)
    checkpoint, problems = newest(folder)
    assert not problems
    again, pool = start(2, checkpoint, **changes)
    for events in (again.round, again.round, again.finish):
        list(events())
    assert again.checksums() == expected.checksums()
    assert "prepare" not in {kind for _, kind, _, _ in pool.log}


BY_ONE = {"clients_per_batch": 1}


def history(rounds):
    return [{"round": r.round, **r.metrics} for r in rounds.records.rounds]


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"optimizer": {"name": "adamw", "lr": 0.01}}},
        {"algorithm": {"name": "fedavg"}, "evaluate": {"every": 2}},
        {"algorithm": {"name": "fedbabu", "fine_tuning_steps": 2, "adapt_momentum": 0.9}},
        {"algorithm": {"name": "scaffold"}, "evaluate": {"clients": "cohort"}},
        {"algorithm": {"name": "centralized"}, "evaluate": {"new_clients": 2}},
        {"evaluate": {"new_clients": 3, "adapt_epochs": 2}},
        {"algorithm": {"name": "feddbe", "kappa": 1.0}, "evaluate": {"new_clients": 2}},
        {"algorithm": {"name": "fedproto"}, "cohort": {"dropout": 0.3, "stragglers": 0.5}},
        {"algorithm": {"name": "fednova"}, "cohort": {"dropout": 0.3, "stragglers": 0.5}},
        {"algorithm": {"name": "fedas"}, "cohort": {"dropout": 0.3, "stragglers": 0.5}},
        *(
            {"algorithm": {"name": name}, "cohort": {"dropout": 0.3, "stragglers": 0.5}, "evaluate": {"new_clients": 2}}
            for name in [*KNOWN, "methods:Masked"]
        ),
        {
            "algorithm": {"name": "fedala", "initial_epochs": 2},
            "cohort": {"stragglers": 0.5},
            "evaluate": {"new_clients": 2},
        },
    ],
    ids=str,
)
def test_no_bit_depends_on_the_order_in_which_tasks_complete(run, changes):
    runs = [run(seed, **changes)[0] for seed in range(2)]
    assert len({str(r.checksums()) for r in runs}) == 1
    results = [{k: v for k, v in row.items() if not k.startswith("system/")} for row in history(runs[0])]
    assert [row["round"] for row in results] == [0, 1, 2, 3]


def test_a_pooled_model_sends_nothing_and_is_evaluated_after_its_training(run):
    rounds, _, _, _ = run(0, algorithm={"name": "centralized"})
    for row in history(rounds):
        assert row["communication/down_bytes"] == row["communication/up_bytes"] == 0
        assert row["cohort/size"] == 1
        # On all test samples: as trained and after aggregation are the same.
        assert row["personalized/accuracy_weighted"] == row["global/accuracy"] == row["aggregated/accuracy_weighted"]
    assert len(rounds.records.rounds) == 4


def test_all_clients_prepare_before_the_first_round_and_keep_nothing_of_it(run):
    changes = {"algorithm": {"name": "feddbe", "kappa": 1.0}, "rounds": 2, "resources": BY_ONE}
    rounds, _, pool, _ = run(0, **changes)
    prepared = [at for at, kind, _, _ in pool.log if kind == "prepare"]
    assert prepared == [-1] * 8
    simulation = Simulation(**changes)
    simulation.prepare()
    torch.testing.assert_close(rounds.sent()["mean"], simulation.server.state["mean"], rtol=0, atol=1e-7)
    cohorts = [sample_cohort(rounds.config, r) for r in range(2)]
    for round_, cohort in enumerate(cohorts):
        simulation.round(round_, [[c] for c in cohort])
    np.testing.assert_allclose(rounds.shared, simulation.shared, atol=1e-6)
    assert rounds.states.trained.tolist() == np.unique(np.concatenate(cohorts)).tolist()
    assert len(rounds.records.rounds) == 2


def test_what_is_evaluated_after_the_server_step_runs_beside_the_next_round(run):
    rounds, done, pool, records = run(0, algorithm={"name": "fedbabu"}, evaluate={"every": 2})
    # Rounds 1 and 3 are evaluated; the shared model that they end with is the one that the next round starts from. Metrics
    # are computed when the actors have work again.
    assert done == [[], [0], [], [1, 2], [3]]
    late = {(at, of, version) for at, kind, of, version in pool.log if kind == "global"}
    assert late == {(2, 2, 3), (3, 4, 5)}
    trained_with = {at: version for at, kind, _, version in pool.log if kind == "train"}
    assert trained_with == {0: 1, 1: 2, 2: 3, 3: 4}
    assert [r.round for r in records] == [0, 1, 2, 3]
    evaluated = [sorted(row) for row in history(rounds) if "global/accuracy" in row]
    assert len(evaluated) == 2
    assert [r["round"] for r in history(rounds)] == [0, 1, 2, 3]


@pytest.mark.parametrize("clients", ["all", "cohort", 3])
@pytest.mark.parametrize("name", ["fedperfix", "fedbabu"])
def test_both_families_are_what_an_evaluation_of_each_client_gives(run, name, clients):
    """As trained and after aggregation, in every round, about the same clients."""
    changes = {"algorithm": {"name": name}, "evaluate": {"clients": clients}, "rounds": 2, "resources": BY_ONE}
    rounds, _, pool, records = run(0, **changes)
    simulation, config = Simulation(**changes), rounds.config
    engine, sizes = simulation.engine, pool.engine.partition.num_test
    tables = rounds.records.accuracy_tables("", 8)
    assert tables["rounds"].tolist() == [0, 1]
    everyone = np.arange(8)

    def accuracy(round_, ids, shared):
        found = engine.evaluate(round_, ids, {"shared": shared}, simulation.states[ids])
        return found.correct / sizes[ids]

    for round_ in range(2):
        cohort = sample_cohort(config, round_)
        incoming, expected = simulation.shared.clone(), np.zeros(8)
        others = np.setdiff1d(everyone, cohort)
        expected[others] = accuracy(round_, others, incoming)
        # The batches of the run: sorted by size, one by one.
        trained = simulation.round(round_, [[c] for c in sorted(cohort, key=lambda c: -engine.partition.num_train[c])])
        for one in trained:
            expected[one.clients] = one.evaluation.correct / one.evaluation.num_samples
        after = accuracy(round_ + 1, everyone, simulation.shared)
        about = EvaluationSchedule(config).reported(round_)
        row = records[round_].metrics
        assert row["personalized/accuracy_mean"] == pytest.approx(expected[about].mean())
        assert row["aggregated/accuracy_mean"] == pytest.approx(after[about].mean())
        assert row["difference/accuracy_mean"] == pytest.approx(expected[about].mean() - after[about].mean())
        for family, values in (("personalized", expected), ("aggregated", after)):
            known = np.flatnonzero(np.isfinite(tables[family][round_]))
            assert known.tolist() == about.tolist()  # also in the last round, whose table of clients has everyone
            np.testing.assert_allclose(tables[family][round_, about], values[about], rtol=1e-6)
    final = rounds.records.final
    for family, values in (("personalized", expected), ("aggregated", after)):
        assert final[f"{family}.clients"].tolist() == list(range(8))
        np.testing.assert_allclose(final[f"{family}.accuracy"], values)


@pytest.mark.parametrize("changes", [{"algorithm": {"name": "fedperfix"}}, {"algorithm": {"name": "fedavg"}}, BY_ONE])
def test_validation_metrics_are_those_of_a_run_that_tests_on_the_validation_samples(run, tmp_path, changes):
    changes = {
        "rounds": 2,
        "evaluate": {"new_clients": 1},
        **({"resources": changes} if changes is BY_ONE else changes),
    }
    changes["cohort"] = {"size": 4, "fraction": None}
    data = {"validation_fraction": 0.3}
    rounds, _, pool, records = run(0, data=data, **changes)
    partition, found = pool.engine.partition, {"test": [], "validation": []}
    for kind in found:
        arrays = {f"train_{i}": partition.train(i) for i in range(9)}
        of = partition.tests if kind == "test" else partition.validations
        np.savez(tmp_path / kind, **arrays, **{f"test_{i}": of(np.array([i])) for i in range(9)})
        split = {
            "name": "file",
            "path": str(tmp_path / f"{kind}.npz"),
            **dict.fromkeys(("alpha", "min_samples", "cap")),
        }
        found[kind] = history(run(1, data={"partition": split}, **changes)[0])
    for row, test, validation in zip(history(rounds), *found.values(), strict=True):
        for name in ("personalized", "aggregated"):
            for metric in OF_CLIENTS:
                key = f"{name}/{metric}"
                assert row[key] == pytest.approx(test[key], abs=1e-7)
                assert row[f"validation/{key}"] == pytest.approx(validation[key], abs=1e-7)
                if name == "personalized":
                    assert row[f"validation/{metric}"] == row[f"validation/{key}"]
        assert row["validation/accuracy_mean"] != row["personalized/accuracy_mean"]
        assert row.get("new_clients/accuracy_after_mean") == test.get("new_clients/accuracy_after_mean")
    assert [key for key in records[0].metrics if key.startswith("validation/global")] == []


def test_a_client_that_does_not_train_is_evaluated_once_for_both_rounds(run):
    _, _, pool, _ = run(0, algorithm={"name": "fedper"}, resources=BY_ONE)
    # Eight clients: round 0 evaluates those four that do not train, later ones everyone before the cohort trains.
    assert [sum(at == r and kind == "evaluate" for at, kind, *_ in pool.log) for r in range(4)] == [4, 8, 8, 8 + 8]


def test_a_pooled_model_is_as_trained_and_aggregated_at_once(run):
    rounds, *_ = run(0, algorithm={"name": "centralized"}, evaluate={"every": 2})
    for row in history(rounds)[1::2]:
        assert row["personalized/accuracy_mean"] == row["aggregated/accuracy_mean"]
        assert row["personalized/accuracy_weighted"] == row["global/accuracy"]
        assert row["difference/accuracy_mean"] == 0


def test_new_clients_never_take_part_and_adapt_to_the_final_shared_parameters(run):
    new = {"new_clients": 3, "adapt_epochs": 2}
    changes = {"train": {"local_epochs": 1}, "cohort": {"fraction": 1.0}, "resources": {"clients_per_batch": 2}}
    rounds, done, pool, _ = run(0, evaluate=new, **changes)
    assert done == [[], [], [0], [1], [2, 3]]
    kinds = [kind for _, kind, _, version in pool.log if version == 5]
    assert sorted(set(kinds)) == ["adapted", "evaluate", "unadapted"]
    assert rounds.states.index.addresses.shape == (8,)
    engine, ids = pool.engine, np.arange(8, 11)
    broadcast = {"shared": rounds.shared}
    initial = np.tile(engine.initial_state, (3, 1))
    before = engine.evaluate(4, ids, broadcast, initial)
    ones = dict.fromkeys(("samples", "uniform"), Weights(np.ones(3, int), 3))
    one_epoch = engine.train(LocalTraining(4, ids, ones, 1), broadcast, initial).evaluation
    after = engine.train(LocalTraining(4, ids, ones, 2), broadcast, initial).evaluation
    found = rounds.records.new
    assert found["clients"].tolist() == [8, 9, 10]
    assert found["before"].tolist() == (before.correct / before.num_samples).tolist()
    assert found["after"].tolist() == (after.correct / after.num_samples).tolist()
    assert after.correct.tolist() != one_epoch.correct.tolist()
    last = history(rounds)[-1]
    assert last["new_clients/accuracy_after_mean"] == pytest.approx(found["after"].mean())
    assert last["new_clients/accuracy_before_std"] == pytest.approx(found["before"].std())
    assert not any(key.startswith("new_clients/") for row in history(rounds)[:-1] for key in row)


def test_a_metric_of_one_phase_survives_stragglers_that_do_not_get_there(run):
    cohort = {"fraction": 1.0, "stragglers": 1.0}
    rounds, _, _, _ = run(0, algorithm={"name": "methods:OneInTraining"}, cohort=cohort, rounds=8)
    reported = [row.get("train/one") for row in history(rounds)]
    assert set(reported) <= {1.0, None}  # never diluted by those that have no value
    assert 1.0 in reported


@pytest.mark.parametrize("changes", [{}, {"algorithm": {"name": "fedas"}}, {"algorithm": {"name": "fednova"}}])
def test_no_result_depends_on_whether_the_sensitivity_is_measured(run, changes):
    measured, _, _, _ = run(0, evaluate={"sensitivity": 2}, rounds=3, **changes)
    without, _, _, _ = run(0, evaluate={"sensitivity": False}, rounds=3, **changes)
    for which in ("shared", "personal"):
        assert measured.checksums()[which] == without.checksums()[which]
    names = [{key for key in row if key.startswith("sensitivity/")} for row in history(measured)]
    assert [bool(found) for found in names] == [False, True, True]
    for row, other in zip(history(measured), history(without), strict=True):
        kept = {key: value for key, value in row.items() if not key.startswith(("sensitivity/", "system/"))}
        assert kept == {key: value for key, value in other.items() if not key.startswith("system/")}


def test_padding_is_what_clients_of_unequal_size_cost(run):
    rounds, _, pool, _ = run(0, resources={"clients_per_batch": 1})
    assert all(row["system/padding_fraction"] == 0 for row in history(rounds))
    rounds, _, pool, _ = run(1, resources={"clients_per_batch": 8}, cohort={"fraction": 1.0}, rounds=1)
    sizes = pool.engine.partition.num_train
    assert history(rounds)[0]["system/padding_fraction"] == pytest.approx(1 - sizes.sum() / (8 * sizes.max()))


def test_clients_that_were_lost_in_evaluation_are_counted_and_listed(run, monkeypatch):
    monkeypatch.setattr(
        ShuffledPool, "drops", staticmethod(lambda task: isinstance(task, Evaluate) and 3 in task.clients)
    )
    changes = {"resources": BY_ONE, "cohort": {"schedule": [[0, 1, 2]] * 2}, "rounds": 2}
    rounds, _, _, records = run(0, algorithm={"name": "fedper"}, **changes)
    assert [record.not_evaluated for record in records] == [(3,), (3,)]
    assert [record.dropped for record in records] == [(), ()]
    for family in ("personalized", "aggregated"):
        assert [row[f"{family}/not_evaluated"] for row in history(rounds)] == [1.0, 1.0]
        assert 3 not in rounds.records.final[f"{family}.clients"]
    assert rounds.records.left_out().to_numpy().tolist() == [[0, 3, "not evaluated"], [1, 3, "not evaluated"]]


def test_everybody_lost_is_counted_too_and_the_run_has_its_tables(run, monkeypatch):
    lost = staticmethod(lambda task: not isinstance(task, Train))
    monkeypatch.setattr(ShuffledPool, "drops", lost)
    changes = {"resources": BY_ONE, "cohort": {"fraction": 0.5}, "rounds": 2}
    rounds, _, _, records = run(0, algorithm={"name": "fedper"}, evaluate={"new_clients": 2}, **changes)
    first, last = history(rounds)
    assert (first["personalized/not_evaluated"], first["aggregated/not_evaluated"]) == (4.0, 8.0)
    assert "personalized/accuracy_mean" in first  # of the cohort, which is evaluated as it trains
    assert "aggregated/accuracy_mean" not in first
    assert not any(key.startswith("difference/") for key in first)
    assert last["new_clients/not_evaluated"] == 2.0
    assert records[1].not_evaluated == tuple(range(10))
    assert len(rounds.records.final["aggregated.clients"]) == 0
    assert np.isnan(rounds.records.accuracy.table("aggregated", 8, [0, 1])).all()
    assert len(rounds.records.new["clients"]) == 0


def test_a_round_without_any_result_counts_everybody(run, monkeypatch):
    monkeypatch.setattr(ShuffledPool, "drops", staticmethod(lambda task: True))
    rounds, _, _, _ = run(0, algorithm={"name": "fedper"}, rounds=1)
    (row,) = history(rounds)
    assert (row["personalized/not_evaluated"], row["aggregated/not_evaluated"]) == (8.0, 8.0)
    assert len(rounds.records.final["personalized.clients"]) == len(rounds.records.final["aggregated.clients"]) == 0


def test_a_client_that_is_lost_before_it_trains_is_missing_after_the_round_before_only(run, monkeypatch):
    monkeypatch.setattr(
        ShuffledPool, "drops", staticmethod(lambda t: isinstance(t, Evaluate) and t.round == 1 and 0 in t.clients)
    )
    changes = {"resources": BY_ONE, "cohort": {"schedule": [[0, 1, 2]] * 2}, "rounds": 2}
    rounds, _, _, records = run(0, algorithm={"name": "fedper"}, **changes)
    assert [record.not_evaluated for record in records] == [(0,), ()]
    assert [row["aggregated/not_evaluated"] for row in history(rounds)] == [1.0, 0.0]
    assert [row["personalized/not_evaluated"] for row in history(rounds)] == [0.0, 0.0]


def to_its_end(rounds):
    """The records of the rounds that are left, without what is measured by a clock."""
    found = []
    while rounds.next_round < rounds.rounds:
        found += [event for event in rounds.round() if isinstance(event, RoundRecord)]
    found += [event for event in rounds.finish() if isinstance(event, RoundRecord)]
    return [(r.round, {k: v for k, v in r.metrics.items() if not k.startswith("system/")}) for r in found]


@pytest.mark.parametrize("evaluate", [{"new_clients": 2}, {"every": 3, "sensitivity": 2}, {"clients": "cohort"}])
def test_a_run_that_ends_early_has_the_bits_of_one_that_was_to_have_as_many_rounds(start, tmp_path, evaluate):
    expected, _ = start(0, rounds=4, evaluate=evaluate)
    records = to_its_end(expected)
    rounds, _ = start(1, rounds=30, evaluate=evaluate)
    list(rounds.round())
    steps = iter(rounds.round())
    next(steps)
    rounds.end_after(4)
    rounds.end_after(5)  # the earlier end counts
    assert rounds.rounds == 4
    list(steps)
    folder = Folder(str(tmp_path))
    writer = CheckpointWriter(folder, 2, {}, {}, rounds.states.read, 8, rounds.states.layout.size)
    writer.write(rounds.snapshot())
    writer.finished(wait=True)
    checkpoint, _ = newest(folder)
    assert checkpoint.manifest.ends_after == 4
    checkpoint.manifest.config["rounds"] = 30  # which the writer of a run has
    assert start(2, checkpoint, rounds=31, evaluate=evaluate)[0].rounds == 31  # more rounds were asked for since
    again, _ = start(2, checkpoint, rounds=30, evaluate=evaluate)
    for ended in (rounds, again):
        left = to_its_end(ended)
        assert left == records[-len(left) :]
        assert left[-1][0] == 3
        assert ended.checksums() == expected.checksums()
        assert {k: v.tolist() for k, v in ended.records.final.items()} == {
            k: v.tolist() for k, v in expected.records.final.items()
        }
    assert rounds.snapshot().ends_after == 4
    assert expected.snapshot().ends_after is None


def test_an_early_end_comes_with_the_next_round_at_the_earliest(start):
    rounds, _ = start(0, rounds=30)
    list(rounds.round())
    steps = iter(rounds.round())
    next(steps)
    rounds.end_after(1)  # round 1 trains already, and its evaluations are not those of a last round
    assert rounds.rounds == 3
    list(steps)
    rounds.end_after(1)
    assert rounds.rounds == 3
