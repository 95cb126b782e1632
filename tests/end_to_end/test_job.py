"""``ray job submit`` of a study to a cluster of two nodes, as in ``docs/cluster.md``, while a client actor is killed."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from mlflow.tracking import MlflowClient

from clusters import ROOT, Cluster, steps, until

ROUNDS = 12
STUDY = "study=[{name: perfix}, {name: avg, algorithm: {name: fedavg}}]"


@pytest.mark.slow
def test_a_submitted_study_finishes_though_an_actor_is_killed(tmp_path):
    shutil.copy(ROOT / "yaml" / "quickstart.yaml", tmp_path)
    with Cluster() as cluster:
        cluster.start_mlflow()
        cluster.start_head(cpus=3)
        cluster.start_node("second", cpus=2)
        cluster.wait_for_mlflow()
        assert cluster.nodes_alive() == 2
        assert cluster.status_without_token("/api/jobs/") == 401

        overrides = [f"rounds={ROUNDS}", STUDY, "resources.num_actors=3", "resources.device=cpu"]
        job = cluster.submit(tmp_path, ["python", "-m", "raysim", "run", "quickstart.yaml", *overrides])
        until(lambda: any(steps(cluster.mlflow, "quickstart").values()), 90, "a round is logged", alive=job)
        before = cluster.client_actors()
        assert len(before) == 3
        # On the other node, if there is one.
        os.kill(min(cluster.client_actors("second") or before), signal.SIGKILL)
        until(lambda: cluster.client_actors() - before, 60, "there is a new actor in its place", alive=job)

        until(lambda: job.poll() is not None, 120, "the job ends")
        assert job.returncode == 0, cluster.log("job")
        assert "succeeded" in cluster.log("job")
        every_round = list(range(ROUNDS))
        assert steps(cluster.mlflow, "quickstart") == {"perfix · seed 0": every_round, "avg · seed 0": every_round}
        client = MlflowClient(cluster.mlflow)
        runs = client.search_runs([client.get_experiment_by_name("quickstart").experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"] * 3  # with the parent
        for run in runs:
            assert "config.yaml" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        until(lambda: not cluster.client_actors(), 10, "the actors are gone")
    assert not cluster.folder.exists()
    assert not cluster.processes()
