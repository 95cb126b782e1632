"""End to end on real Ray and real MLflow: equal bits on any number of actors, MLflow's contents, faults, clean stops."""

import getpass
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.tracking import MlflowClient

import raysim
from raysim.config.loading import load_config

from configs import TINY, tiny

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def run(store, **changes):
    return raysim.run(tiny(**changes, tracking={"uri": store}))


EVERYONE = {"cohort": {"fraction": 1.0}}  # four client batches of two in a round


@pytest.fixture(scope="module")
def study(store):
    """Several methods and settings in one study, on two actors."""
    entries = [
        {"name": "perfix", "seeds": [0, 1], **EVERYONE},
        {"name": "one by one", **EVERYONE, "resources": {"clients_per_batch": 1}},
        {"name": "all at once", **EVERYONE, "resources": {"clients_per_batch": 8}},
        {"name": "avg", "algorithm": {"name": "fedavg"}, "evaluate": {"protocol": "aggregated"}},
        {"name": "seldom", "evaluate": {"every": 2}, "rounds": 3},
        {"name": "poisoned", "algorithm": {"name": "methods:Poisoned"}, "train": {"local_epochs": 1}},
    ]
    return run(store, study=entries)


def text(client, run_id, name, tmp_path):
    with open(client.download_artifacts(run_id, name, str(tmp_path))) as file:
        return file.read()


OF_CLIENTS = ("accuracy_mean", "accuracy_std", "accuracy_weighted", "accuracy_worst_decile")
OF_CLIENTS += ("auc_mean", "auc_weighted", "auc_micro", "not_evaluated")
EVALUATED = {f"{family}/{name}" for family in ("personalized", "aggregated") for name in OF_CLIENTS}
EVALUATED |= {f"difference/{name}" for name in ("accuracy_mean", "accuracy_weighted", "auc_mean")}
METRICS = {
    *EVALUATED,
    "train/loss",
    "system/round_seconds",
    "system/train_samples_per_second",
    "system/actor_busy_fraction",
    "system/padding_fraction",
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "communication/down_bytes",
    "communication/up_bytes",
    "cohort/size",
    "cohort/reported",
    "cohort/dropped",
    "cohort/rejected",
}

SHARED_TYPES = {"patch_embedding", "position_and_class", "norm", "qkv", "attention_projection", "mlp"}


def test_mlflow_has_a_parent_with_children_and_every_metric_of_every_round(study, store, tmp_path):
    client = MlflowClient(store)
    parent = client.get_run(study.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {
        "config.yaml",
        "comparison.png",
        "comparison.csv",
        "clients.png",
        "fairness.csv",
        *("gains_over_avg.csv", "gains_over_avg.png", "who_gains_over_avg.png"),
    }
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {r.info.run_name for r in children} == {f"{r.entry} · seed {r.seed}" for r in study.runs}
    (data,) = parent.inputs.dataset_inputs
    assert data.dataset.name == "digits"
    for child in children:
        assert child.info.status == "FINISHED"
        assert (child.data.tags["mlflow.source.name"], child.data.tags["mlflow.source.type"]) == ("raysim", "LOCAL")
        assert child.data.tags["mlflow.user"] == parent.data.tags["mlflow.user"] == getpass.getuser()
        shares_all = child.info.run_name.startswith("avg")
        types = SHARED_TYPES | ({"head"} if shares_all else set())
        names = METRICS | {f"sensitivity/{t}{end}" for t in types for end in ("", "_spread")}
        names |= {"global/accuracy"} if shares_all else set()
        assert set(child.data.metrics) == names
        for name in names:
            points = client.get_metric_history(child.info.run_id, name)
            every_round, seldom = [0, 1], child.info.run_name.startswith("seldom")
            if seldom:
                every_round = [1, 2] if name in EVALUATED else [0, 1, 2]
            assert [point.step for point in points] == every_round
        artifacts = {a.path for a in client.list_artifacts(child.info.run_id)}
        assert artifacts == {
            *("config.yaml", "partition.png", "clients.csv", "accuracy.npz", "accuracy.png", "heat_map.png", "model"),
            *("timeline.csv", "timeline.png"),
            *(("left_out.csv",) if child.info.run_name.startswith("poisoned") else ()),
        }
        models = {a.path for a in client.list_artifacts(child.info.run_id, "model")}
        assert models == {f"model/{name}" for name in ("about.json", "shared.safetensors", "personal.safetensors")}
        (data,) = child.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("digits", child.data.tags["raysim.dataset_digest"])
        assert "get-artifact?path=partition.png" in child.data.tags["mlflow.note.content"]
        assert child.data.params["train.optimizer.lr"] == "0.1"
        assert child.data.tags["raysim.dataset"] == "digits"
        assert child.data.tags["raysim.device"] == "cpu"
        assert {"version.ray", "version.torch", "raysim.algorithm", "checksum.shared"} <= set(child.data.tags)
        clients = pd.read_csv(io.StringIO(text(client, child.info.run_id, "clients.csv", tmp_path)))
        assert clients["client"].tolist() == list(range(8))
        for family in ("personalized", "aggregated"):
            accuracy = child.data.metrics[f"{family}/accuracy_mean"]
            assert clients[f"{family}_accuracy"].mean() == pytest.approx(accuracy)
            assert 0 <= accuracy <= 1


def test_the_result_is_what_mlflow_has(study, store):
    entries = ["perfix", "perfix", "one by one", "all at once", "avg", "seldom", "poisoned"]
    assert [(r.entry, r.seed) for r in study.runs] == [(e, int(i == 1)) for i, e in enumerate(entries)]
    assert study.history["round"].tolist() == [0, 1] * 5 + [0, 1, 2] + [0, 1]
    client = MlflowClient(store)
    for result in study.runs:
        logged = client.get_run(result.run_id).data.metrics
        last = result.history.iloc[-1]
        assert {name: last[name] for name in logged} == pytest.approx(logged)
    table = study.table.set_index("name")
    assert table.loc["perfix", "seeds"] == 2
    assert "±" in table.loc["perfix", "accuracy"]


def test_communication_is_what_a_federation_would_send(study):
    for result in study.runs:
        row = result.history.iloc[0]
        size = 8 if result.entry in ("perfix", "one by one", "all at once") else 4
        assert row["cohort/size"] == size
        assert row["communication/up_bytes"] == row["communication/down_bytes"] == 4 * size * len(result.shared)


def test_clients_per_batch_changes_rounding_only(study):
    two, one, eight = (next(r for r in study.runs if r.entry == e) for e in ("perfix", "one by one", "all at once"))
    for other in (two, eight):
        np.testing.assert_allclose(other.shared, one.shared, atol=1e-4)
        np.testing.assert_allclose(other.history["train/loss"], one.history["train/loss"], rtol=1e-4)


def test_after_aggregation_everyone_has_the_shared_model(study):
    average = next(r for r in study.runs if r.entry == "avg").history
    assert average["aggregated/accuracy_weighted"].tolist() == average["global/accuracy"].tolist()
    assert average["aggregated/accuracy_weighted"].tolist() != average["personalized/accuracy_weighted"].tolist()


def test_a_table_of_runs_whose_protocols_differ_is_after_aggregation(study):
    assert study.view.model == "aggregated"
    average = next(r for r in study.runs if r.entry == "avg").history.iloc[-1]
    table = study.table.set_index("name")
    assert table.loc["avg", "accuracy"] == f"{100 * average['aggregated/accuracy_mean']:.1f}"
    assert table.loc["avg", "as trained"] == f"{100 * average['personalized/accuracy_mean']:.1f}"


def test_rejected_clients_are_counted_by_id_and_the_run_goes_on(study, store, tmp_path):
    poisoned = next(r for r in study.runs if r.entry == "poisoned")
    rejected = poisoned.history["cohort/rejected"]
    assert 0 < rejected.sum() < 8
    assert np.isfinite(poisoned.shared).all()
    client = MlflowClient(store)
    listed = pd.read_csv(io.StringIO(text(client, poisoned.run_id, "left_out.csv", tmp_path)))
    assert len(listed) == rejected.sum()


@pytest.mark.slow
def test_the_configuration_that_mlflow_keeps_runs_again_with_the_same_bits(study, store, tmp_path):
    first = study.runs[0]
    path = tmp_path / "again.yaml"
    path.write_text(text(MlflowClient(store), first.run_id, "config.yaml", tmp_path))
    config = load_config(path)
    assert config.resources.clients_per_batch == 2
    again = raysim.run(config).runs[0]
    assert again.checksums == first.checksums
    assert load_config(path, ["rounds=1"]).rounds == 1


@pytest.mark.parametrize("num_actors", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_bits_do_not_depend_on_the_number_of_actors(study, store, num_actors):
    result = run(store, resources={"num_actors": num_actors}, **EVERYONE).runs[0]
    expected = study.runs[0]  # two actors
    assert result.checksums == expected.checksums
    assert np.array_equal(result.shared, expected.shared)
    results = [c for c in result.history if not c.startswith("system/") and c != "run_id"]
    pd.testing.assert_frame_equal(result.history[["round", *results[3:]]], expected.history[["round", *results[3:]]])


KINDS = [
    *({"name": name} for name in ("fedfomo", "ifca", "pfedhn", "flexlora", "fedrolex")),
    *({"name": f"methods:{kind}KillsItsActor", "at": 3} for kind in ("Known", "Masked")),
]


@pytest.mark.slow
def test_servers_that_know_their_clients_give_the_same_bits_on_one_to_four_actors_one_of_which_is_killed(
    store, tmp_path
):
    """A method of each kind: uploads of each, groups, a server that trains, ranks, masks; and two that kill an actor."""
    checksums = []
    for actors in (1, 3, 4):
        entries = []
        for i, algorithm in enumerate(KINDS):
            if "at" in algorithm:
                folder = tmp_path / f"{actors}.{i}"
                folder.mkdir()
                if actors == 1:  # so that the actor has three clients of a round, two of them in its sum
                    (folder / "life").touch()
                algorithm = {**algorithm, "folder": str(folder)}
            entries.append({"name": str(i), "algorithm": algorithm})
        resources = {"num_actors": actors, "clients_per_batch": 1}
        result = run(
            store, name=f"actors{actors}", study=entries, resources=resources, rounds=2, cohort={"fraction": 0.75}
        )
        checksums.append([r.checksums for r in result.runs])
    assert not list(tmp_path.glob("*/*"))  # they did die
    assert all(other == checksums[0] for other in checksums[1:])


def test_a_killed_actor_is_replaced_and_no_bit_changes(store, tmp_path):
    """One actor that dies at its third client of a round: the first two were in its sum and must run again, too.

    One whose GPU is out of order is replaced as well.
    """
    for folder, lives in (("undisturbed", 0), ("killed", 1), ("broken", 1)):
        (tmp_path / folder).mkdir()
        for life in range(lives):
            (tmp_path / folder / str(life)).touch()
    kills = {"name": "methods:KillsItsActor", "at": 3}
    errors = {"undisturbed": "", "killed": "", "broken": "CUDA error: an illegal memory access was encountered"}
    entries = [
        {"name": n, "algorithm": {**kills, "folder": str(tmp_path / n), "error": error}} for n, error in errors.items()
    ]
    undisturbed, *others = run(store, study=entries, resources={"num_actors": 1, "clients_per_batch": 1}).runs
    assert not list(tmp_path.glob("*/*"))  # they did die
    assert [other.checksums for other in others] == [undisturbed.checksums] * 2


@pytest.mark.slow
def test_clients_that_always_kill_their_actor_end_the_run(store, tmp_path):
    for life in range(4):
        (tmp_path / str(life)).touch()
    with pytest.raises(raysim.RunFailed, match=r"round 1: the actors that ran clients \[.*\] died 4 times"):
        run(store, algorithm={"name": "methods:KillsItsActor", "folder": str(tmp_path)}, resources={"num_actors": 1})


@pytest.mark.slow
def test_a_run_whose_batches_do_not_fit_into_memory_starts_again_with_smaller_ones(store):
    hungry = {"algorithm": {"name": "methods:OutOfMemory"}, **EVERYONE}
    with pytest.raises(raysim.RunFailed, match="out of memory: lower resources.clients_per_batch"):
        run(store, name="asked", **hungry, resources={"num_actors": 1, "clients_per_batch": 2})
    notes = []
    config = tiny(**hungry, name="auto", tracking={"uri": store}, resources={"clients_per_batch": "auto"})
    chosen = raysim.run(config, lambda status, *_: notes.extend(map(str, status.events))).runs[0]
    assert any("auto: out of device memory with 2 clients per batch; it starts again with 1" in n for n in notes)
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("auto").experiment_id], order_by=["start_time ASC"])
    assert [r.info.status for r in runs] == ["FAILED", "FINISHED"]
    assert [r.data.params["resources.clients_per_batch"] for r in runs] == ["2", "1"]
    assert runs[1].data.tags["raysim.restarted"] == "out of device memory with 2 clients per batch"
    assert "raysim.restarted" not in runs[0].data.tags
    same = run(store, name="one", **hungry, resources={"num_actors": 1, "clients_per_batch": 1}).runs[0]
    assert chosen.checksums == same.checksums


@pytest.mark.slow
def test_a_bug_in_an_algorithm_surfaces_once_with_client_and_traceback(store):
    with pytest.raises(raysim.RunFailed) as caught:
        run(store, name="buggy", algorithm={"name": "methods:Buggy"}, resources={"num_actors": 1})
    message = str(caught.value)
    assert "train of client" in message
    assert "round 0" in message
    assert "ZeroDivisionError: a bug in my method" in message
    assert "methods.py" in message
    assert message.count("Traceback") == 1
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("buggy")
    assert [r.info.status for r in client.search_runs([experiment.experiment_id])] == ["FAILED"]


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"num_actors": 5}, r"5 actors with 1 CPUs each need 5 CPUs, this node has 4"),
        ({"num_cpus_per_actor": 3}, r"2 actors with 3 CPUs each need 6 CPUs"),
        ({"num_gpus_per_actor": 2}, r"num_gpus_per_actor: 2 asked, this node has 0 GPUs"),
        ({"device": "cuda", "clients_per_batch": "auto"}, r"'cuda' is asked for, but Ray sees no GPU"),
    ],
)
def test_resources_that_the_cluster_does_not_have_are_an_error_not_a_hang(store, resources, message):
    with pytest.raises(raysim.ConfigError, match=message):
        run(store, resources=resources)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "closed pipe"])
def test_a_run_that_is_ended_is_closed_as_killed(tmp_path, ending):
    changes = {"rounds": 500, "algorithm": {"name": "methods:Slow"}, "resources": {"num_actors": 1}}
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
    path = {"PYTHONPATH": str(next(p for p in sys.path if p.endswith("support")))}
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "raysim", "run", "slow.yaml"],
            cwd=tmp_path,
            env={**os.environ, **path},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    assert any("round 1 of 500" in line for line in process.stdout)
    if ending == "closed pipe":  # `raysim run ... | head`
        process.stdout.close()
    else:
        process.send_signal(getattr(signal, ending))
    process.wait(timeout=60)
    said = (tmp_path / "errors").read_text()
    if ending != "closed pipe":
        assert process.returncode == 130, said
        assert "closed as KILLED" in said
        assert "Traceback" not in said
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert [r.info.status for r in client.search_runs([experiment.experiment_id])] == ["KILLED"]
