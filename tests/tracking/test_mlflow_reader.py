"""What is read back from a store that a tracker has written."""

import numpy as np
import pytest

from raysim.errors import ConfigError
from raysim.tracking.mlflow_reader import FinishedRuns
from raysim.tracking.mlflow_store import MLflowStore


def latest(tracker):
    return FinishedRuns(tracker.uri, tracker.experiment).latest_study()


def test_an_interrupted_study_is_compared_by_its_finished_runs(tmp_path):
    tracker = MLflowStore(f"sqlite:///{tmp_path}/mlflow.db", "e")
    with pytest.raises(ConfigError, match="has no finished run"):
        latest(tracker)
    parent = tracker.start("study", {}, {"raysim.kind": "study"})
    for seed, status in enumerate(["FINISHED", "KILLED"]):
        child = tracker.start(f"a · seed {seed}", {"seed": seed}, {"raysim.entry": "a"}, parent)
        for round_ in range(2):
            tracker.log_round(child, round_, {"personalized/accuracy_mean": 0.1 * round_})
        tracker.end(child, status)
    tracker.end(parent, "KILLED")
    history = latest(tracker)
    assert history[["name", "seed", "round"]].values.tolist() == [["a", 0, 0], ["a", 0, 1]]
    assert history["personalized/accuracy_mean"].tolist() == [0.0, 0.1]


def test_accuracy_of_clients_over_their_last_rounds(tmp_path):
    tracker = MLflowStore(f"sqlite:///{tmp_path}/mlflow.db", "e")
    run = tracker.start("a", {"seed": 0}, {"raysim.entry": "a"})
    nan = np.nan
    accuracy = np.array([[0.1, 0.2, nan], [0.3, nan, nan], [0.5, 0.4, nan]])
    finished = FinishedRuns(tracker.uri, "e")
    arrays = {"rounds": np.arange(3), "personalized": accuracy, "aggregated": accuracy / 2}
    tracker.log_arrays(run, arrays, "accuracy.npz")
    np.testing.assert_allclose(finished.client_accuracy(run, "personalized", [2]), [0.5, 0.4, nan])
    np.testing.assert_allclose(finished.client_accuracy(run, "aggregated", [2]), [0.25, 0.2, nan])
    # The last two rounds, the same for everyone: client 1 was not evaluated in one of them, and has no mean.
    np.testing.assert_allclose(finished.client_accuracy(run, "personalized", [1, 2]), [0.4, nan, nan])
    with pytest.raises(ConfigError, match="has no round 5, which MLflow has"):
        finished.client_accuracy(run, "personalized", [4])
    with pytest.raises(ConfigError, match=r"has no artifact accuracy\.npz"):
        finished.client_accuracy(tracker.start("b", {}, {}), "personalized", [0])


def test_runs_of_others_in_the_experiment_are_not_compared(tmp_path):
    tracker = MLflowStore(f"sqlite:///{tmp_path}/mlflow.db", "e")
    tracker.end(tracker.start("foreign", {"lr": 1}, {}), "FINISHED")
    with pytest.raises(ConfigError, match="has no finished run of raysim"):
        latest(tracker)


def test_a_single_run_after_a_study_does_not_take_its_place(tmp_path):
    tracker = MLflowStore(f"sqlite:///{tmp_path}/mlflow.db", "e")

    def finished(name, parent=None):
        run = tracker.start(name, {"seed": 0}, {"raysim.entry": name}, parent)
        tracker.log_round(run, 0, {"personalized/accuracy_mean": 0.5})
        tracker.end(run, "FINISHED")
        return run

    single = finished("single")
    assert list(latest(tracker)["run_id"]) == [single]
    parent = tracker.start("study", {}, {"raysim.kind": "study"})
    child = finished("child", parent)
    finished("later")
    again = FinishedRuns(tracker.uri, "e")
    assert list(again.latest_study()["run_id"]) == [child]
    again.choose([single, parent])
    assert list(again.latest_study()["run_id"]) == [single, child]
