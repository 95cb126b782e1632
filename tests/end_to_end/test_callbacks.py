"""Callbacks on real Ray and MLflow: a study in which one ends a run, one fails, and TensorBoard and W&B get the rest."""

import sys

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

import raysim

from configs import tiny

pytestmark = pytest.mark.usefixtures("cluster")
MODULE = """
import raysim

def places(results, labels):
    return {"places": len(set(results.domains.tolist()))}

class Fails(raysim.Callback):
    def round_completed(self, run, record):
        if record.round == 1:
            raise ZeroDivisionError("of mine")

class Slow(raysim.Callback):
    def __init__(self, rounds: int):
        self.rounds = rounds

    def round_completed(self, run, record):
        run.log({"mine/round": record.round}, record.round)
        if record.round + 1 == self.rounds:
            run.stop("that will do")
"""


class Ended(raysim.Callback):
    """Defined here and given as an object: it writes a file when a run ends."""

    def __init__(self, folder):
        self.folder = folder

    def ended(self, run, status, result, error):
        rounds = len(result.history) if result is not None else None
        (self.folder / f"{run.entry}.txt").write_text(f"{status} {rounds} {len(run.history)}")


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "watching.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "watching", raising=False)
    monkeypatch.setenv("RAYSIM_HOME", str(tmp_path))

    def make(callbacks, **changes):
        given = {"tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
        given["evaluate"] = {"new_clients": 2, "metrics": ["watching:places"]}
        given["data"] = {"rotated_domains": True, "partition": {"name": "by_domain", "min_samples": 4}}
        study = [{"name": name, "callbacks": found} for name, found in callbacks.items()]
        return tiny(**given, **changes, study=study)

    return make


def test_a_study_in_which_one_run_ends_early_and_one_fails(config, tmp_path):
    asked = config(
        {
            "fails": ["watching:Fails"],
            "stops": [{"name": "watching:Slow", "options": {"rounds": 2}}, "tensorboard"],
            "whole": [{"name": "wandb", "options": {"project": "mine", "mode": "offline"}}],
        },
        rounds=8,
    )
    with pytest.raises(raysim.RunFailed, match="1 of 3 runs failed") as error:
        raysim.run(asked, callbacks=[Ended(tmp_path)])
    assert "callbacks: watching:Fails raised ZeroDivisionError('of mine') in round_completed" in str(error.value)
    told = {name: (tmp_path / f"{name}.txt").read_text() for name in ("fails", "stops", "whole")}
    assert told == {"fails": "FAILED None 2", "stops": "FINISHED 5 5", "whole": "FINISHED 8 8"}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tiny"]
    runs = {run.info.run_name.split(" ")[0]: run for run in client.search_runs([experiment.experiment_id])}
    stopped = runs["stops"]
    assert stopped.info.status == "FINISHED"
    assert stopped.data.tags["raysim.ended_early"] == "after round 5: watching:Slow: that will do"
    assert stopped.data.tags["raysim.rounds"] == "5"
    logged = client.get_metric_history(stopped.info.run_id, "mine/round")
    assert [(point.step, point.value) for point in logged] == [(i, float(i)) for i in range(5)]
    assert "new_clients/accuracy_after_mean" in stopped.data.metrics
    assert runs["fails"].info.status == "FAILED"
    assert runs["fails"].data.tags["raysim.failure"].startswith("callbacks: watching:Fails raised")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    history = client.get_metric_history(stopped.info.run_id, "personalized/accuracy_mean")
    assert [e.step for e in events.Scalars("personalized/accuracy_mean")] == [0, 1, 2, 3, 4]
    assert [e.value for e in events.Scalars("personalized/accuracy_mean")] == pytest.approx([p.value for p in history])
    (offline,) = (tmp_path / "wandb").glob(f"offline-run-*-{runs['whole'].info.run_id}")
    assert list(offline.glob("*.wandb"))


def test_a_run_that_ended_early_has_the_bits_of_a_shorter_one_and_stays_finished(config, tmp_path):
    stops = [{"name": "watching:Slow", "options": {"rounds": 1}}]
    ended = raysim.run(config({"a": stops}, rounds=30))
    short = raysim.run(config({"a": []}, rounds=4))
    assert ended.runs[0].checksums == short.runs[0].checksums
    assert ended.runs[0].clients.equals(short.runs[0].clients)
    assert set(ended.table["places"]) == {str(ended.runs[0].clients["domain"].nunique())} != {"1"}
    assert ended.table.drop(columns="s/round").equals(short.table.drop(columns="s/round"))
    (folder,) = [
        path for path in (tmp_path / "checkpoints").iterdir() if '"rounds": 30' in (path / "study.json").read_text()
    ]
    again = raysim.resume(str(folder))
    assert again.runs[0].checksums == ended.runs[0].checksums
    from_csv = raysim.attach(str(folder)).runs[0].clients
    pd.testing.assert_frame_equal(from_csv, ended.runs[0].clients, check_dtype=False, check_index_type=False)
