"""Several runs at a time, and runs that fail, on real Ray and real MLflow."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

import raysim
from raysim.errors import ConfigError
from raysim.tracking.mlflow_reader import FinishedRuns

from configs import tiny

pytestmark = pytest.mark.usefixtures("cluster")
RESULTS = ["personalized/accuracy_mean", "personalized/auc_micro", "train/loss", "communication/up_bytes"]


def study(tmp_path, **changes):
    tmp_path.mkdir(exist_ok=True)
    methods = {"grid": {"algorithm.name": ["fedavg", "local"], "seed": [0, 1]}}
    return tiny(**{"study": methods, "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}, **changes})


@pytest.mark.slow
def test_runs_at_a_time_have_the_bits_of_runs_one_after_another(tmp_path):
    seen = []

    def watch(status, names, rounds):
        seen.append(sum(phase == "running" for phase in status.phases))

    one = {"num_actors": 1, "clients_per_batch": 2, "concurrent_runs": 1}
    alone = raysim.run(study(tmp_path / "a", resources=one), watch)
    assert max(seen) == 1
    seen.clear()
    together = raysim.run(study(tmp_path / "b", resources={**one, "concurrent_runs": 3}), watch)
    assert max(seen) == 3
    assert [(r.entry, r.seed) for r in together.runs] == [("fedavg", 0), ("fedavg", 1), ("local", 0), ("local", 1)]
    assert [r.checksums for r in together.runs] == [r.checksums for r in alone.runs]
    assert together.history[RESULTS].equals(alone.history[RESULTS])
    assert together.table["accuracy"].tolist() == alone.table["accuracy"].tolist()


@pytest.mark.slow  # tests/workers/test_auto_resources.py has the rule
def test_auto_fills_the_cluster_with_what_a_run_can_use(tmp_path):
    few = {"num_actors": "auto", "clients_per_batch": 8, "concurrent_runs": "auto"}  # a batch per round: one actor
    result = raysim.run(study(tmp_path, resources=few, cohort={"fraction": 1.0}, rounds=1))
    run = MlflowClient(result.tracking_uri).get_run(result.runs[0].run_id)
    assert run.data.params["resources.concurrent_runs"] == "4"
    assert run.data.params["resources.num_actors"] == "1"


def test_more_runs_at_a_time_than_there_is_room_for_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="resources.concurrent_runs: 3 runs with 2 actors each, there is room for 4"):
        raysim.run(study(tmp_path, resources={"num_actors": 2, "concurrent_runs": 3}))


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other_and_is_tried_again_by_the_same_command(tmp_path):
    entries = [
        {"name": "fine", "seeds": [0, 1], "algorithm": {"name": "fedavg"}},
        {"name": "fails", "algorithm": {"name": "methods:FailsOnce", "fuse": str(tmp_path / "fuse")}},
        {"name": "late", "algorithm": {"name": "local"}},
    ]
    resources = {"num_actors": 1, "concurrent_runs": 2}
    config = study(tmp_path / "disturbed", study=entries, rounds=4, checkpoint={"every": 1}, resources=resources)
    (tmp_path / "fuse").touch()
    with pytest.raises(raysim.RunFailed, match="1 of 4 runs failed:") as caught:
        raysim.run(config)
    assert "  fails · seed 0: train of client" in str(caught.value)
    assert "short circuit" in str(caught.value)
    client = MlflowClient(config.tracking.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    status = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    finished = dict.fromkeys(("fine · seed 0", "fine · seed 1", "late · seed 0"), "FINISHED")
    assert status == {**finished, "fails · seed 0": "FAILED", "tiny": "FAILED"}
    (reason,) = FinishedRuns(config.tracking.uri, "tiny").missing()
    assert reason.startswith("fails · seed 0, FAILED (train of client")

    undisturbed = raysim.run(config, fresh=True)  # as another study, which does not fail
    told = []
    again = raysim.run(
        config, lambda status, names, rounds: told.extend(e for e in status.events if isinstance(e, str))
    )
    assert sum("finished before" in line for line in told) == 3
    assert again.parent_run_id != undisturbed.parent_run_id
    timed = ["s/round"]
    assert again.table.drop(columns=timed).equals(undisturbed.table.drop(columns=timed))
    assert [r.checksums for r in again.runs] == [r.checksums for r in undisturbed.runs]
    status = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert set(status.values()) == {"FINISHED"}
    assert len(status) == 5
    assert FinishedRuns(config.tracking.uri, "tiny").missing() == []
    failed = client.get_run(again.runs[2].run_id)
    assert failed.info.run_name == "fails · seed 0"
    assert failed.data.tags["raysim.failure"] == ""

    # Its rounds were done, and the command was killed while MLflow was being told.
    folder = min((tmp_path / "disturbed" / "checkpoints").iterdir(), key=lambda place: place.name[-22:-7])  # the older
    state = json.loads((folder / "study.json").read_text())
    assert all(row["finished"] for row in [state, *state["runs"]])
    state["finished"] = state["runs"][0]["finished"] = False
    (folder / "study.json").write_text(json.dumps(state))
    client.update_run(run_id := again.runs[0].run_id, status="RUNNING")
    artifact = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file:")) / "clients.csv"
    artifact.unlink()
    told.clear()
    raysim.run(config, lambda status, names, rounds: told.extend(e for e in status.events if isinstance(e, str)))
    assert sum("finished before" in line for line in told) == 3
    assert sum("goes on after round 4" in line for line in told) == 1
    assert client.get_run(run_id).info.status == "FINISHED"
    assert artifact.exists()
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [0, 1, 2, 3]
