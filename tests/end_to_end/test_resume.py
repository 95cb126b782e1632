"""End to end on real Ray and real MLflow: what was interrupted goes on, with the bits and the steps of what was not."""

import inspect
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import yaml
from mlflow.tracking import MlflowClient

import raysim
from raysim.experiments.driver import NAMESPACE
from raysim.storage.checkpoint import rounds_in
from raysim.storage.folder import Folder
from raysim.tracking.mlflow_reader import FinishedRuns

from commands import start_command
from configs import TINY, tiny

pytestmark = pytest.mark.usefixtures("cluster")
SLOW = {"algorithm": {"name": "methods:Slow", "pause": 0.02}, "rounds": 8, "checkpoint": {"every": 2}}
AT_ONCE = {**SLOW, "algorithm": {"name": "methods:Slow", "pause": 0.0}}  # with the same bits
ONE_ACTOR = {"num_actors": 1}


@pytest.fixture(scope="module")
def undisturbed_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def undisturbed(undisturbed_folder):
    return raysim.run(tiny(**AT_ONCE, tracking={"uri": f"sqlite:///{undisturbed_folder}/mlflow.db"})).runs[0]


def steps(uri, run_id, key="train/loss"):
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, key)]


def check(result, undisturbed, uri):
    run = result.runs[0]
    assert run.checksums == undisturbed.checksums
    np.testing.assert_array_equal(run.shared, undisturbed.shared)
    for key in ("train/loss", "personalized/accuracy_mean", "cohort/reported"):
        logged = sorted(steps(uri, run.run_id, key))
        assert logged == list(enumerate(undisturbed.history[key]))
    assert MlflowClient(uri).get_run(run.run_id).info.status == "FINISHED"
    own = [c for c in run.history if not c.startswith("system/") and c != "run_id"]
    assert run.history[own].equals(undisturbed.history[own])
    assert run.clients.equals(undisturbed.clients)


def studies(folder):
    return sorted(str(p.parent) for p in Path(folder).glob("checkpoints/*/study.json"))


def rounds_done(folder):
    return sum(len(p.read_text().splitlines()) for p in Path(folder).glob("checkpoints/*/journal/*.jsonl"))


def in_background(config):
    """A command in a thread, as far as it comes."""
    results = []

    def work():
        try:
            results.append(raysim.run(config))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, results


def wait_for(condition, log=None, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, log.read_text() if log is not None else ""
        time.sleep(0.05)


def the_driver(folder):
    return ray.get_actor(f"driver of {studies(folder)[0]}", NAMESPACE)


def test_an_interrupted_run_is_resumed(tmp_path, undisturbed):
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def interrupt(status, *_):
        if any(not isinstance(event, str) and event.record.round == 4 for event in status.events):
            raise KeyboardInterrupt

    with pytest.raises(raysim.RunKilled, match="closed as KILLED"):
        raysim.run(tiny(**SLOW, tracking={"uri": uri}), interrupt)
    (folder,) = studies(tmp_path)
    notes = []
    result = raysim.resume(folder, watch=lambda s, *_: notes.extend(e for e in s.events if isinstance(e, str)))
    assert any(line.startswith("tiny: goes on after round") for line in notes)
    check(result, undisturbed, uri)


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_by_itself(tmp_path, undisturbed):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    thread, results = in_background(tiny(**SLOW, tracking={"uri": uri}))
    for rounds in (1, 5):  # before the first checkpoint, and after it
        wait_for(lambda rounds=rounds: rounds_done(tmp_path) >= rounds)
        os.kill(ray.get(the_driver(tmp_path).process.remote()), signal.SIGKILL)
    thread.join(180)
    check(results[0], undisturbed, uri)
    (folder,) = studies(tmp_path)
    (place,) = (path for path in Path(folder).iterdir() if path.name.startswith("00-"))
    assert rounds_in(Folder(str(place))) == [8]  # of a finished run the last one is kept
    with pytest.raises(ValueError, match="Failed to look up actor"):
        the_driver(tmp_path)


@pytest.mark.slow
def test_states_that_are_lost_come_back_from_the_last_checkpoint(tmp_path, undisturbed, monkeypatch):
    """The slot file is damaged by hand: as if its node were gone."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    said = []

    def watch(status, *_):
        said.extend(e for e in status.events if isinstance(e, str))
        done = [e[1].round for e in status.events if not isinstance(e, str)]
        if 4 in done:
            ray.get(the_driver(tmp_path).__ray_call__.remote(lose_states))

    check(raysim.run(tiny(**SLOW, tracking={"uri": uri}), watch), undisturbed, uri)
    assert any("tiny: node 0 burnt down; back to the last checkpoint" in line for line in said)
    assert any(line.startswith("tiny: goes on after round") for line in said)


def lose_states(_):
    """In the driver's process: the next checksum or checkpoint finds nothing to read."""
    from raysim.errors import StatesLost
    from raysim.federation.client_states import ClientStates

    read = ClientStates.read

    def burnt(self, addresses):
        ClientStates.read = read
        raise StatesLost("node 0 burnt down")

    ClientStates.read = burnt


@pytest.mark.slow
def test_a_command_that_is_killed_with_all_its_processes_is_resumed(tmp_path, undisturbed):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "slow.yaml").write_text(yaml.safe_dump({**TINY, **SLOW}))
    arguments = ("run", "slow.yaml")
    for rounds in (1, 5):  # tests/support/chaos.py has many more moments
        process = start_command(tmp_path, *arguments)
        wait_for(lambda rounds=rounds: rounds_done(tmp_path) >= rounds, tmp_path / "log")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        (folder,) = studies(tmp_path)
        experiment = MlflowClient(uri).get_experiment_by_name("tiny")
        (run,) = MlflowClient(uri).search_runs([experiment.experiment_id])
        arguments = ("resume", run.info.run_id)
    result = raysim.resume(folder)
    check(result, undisturbed, uri)
    assert result.runs[0].run_id == run.info.run_id
    again = raysim.resume(run.info.run_id, uri=uri)  # of what is finished nothing is left to do
    assert again.runs[0].checksums == undisturbed.checksums
    check(again, undisturbed, uri)


def killed_command(folder):
    """A command on the test's own cluster that is killed when its run has begun."""
    (folder / "slow.yaml").write_text(yaml.safe_dump({**TINY, **SLOW}))
    process = start_command(
        folder, "run", "slow.yaml", env={"RAY_ADDRESS": ray.get_runtime_context().gcs_address}.items()
    )
    try:
        wait_for(lambda: rounds_done(folder) >= 1, folder / "log")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return studies(folder)[0]


@pytest.mark.slow
def test_a_run_whose_command_was_killed_goes_on_in_the_cluster_and_is_attached_to(tmp_path, undisturbed):
    folder = killed_command(tmp_path)
    seen = []
    result = raysim.attach(folder, watch=lambda status, *_: seen.extend(status.events))
    check(result, undisturbed, f"sqlite:///{tmp_path}/mlflow.db")
    assert [event[1].round for event in seen] == list(range(8))  # from the first round on


@pytest.mark.slow
def test_nobody_needs_to_attach_and_then_the_driver_ends_by_itself(tmp_path, undisturbed):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = killed_command(tmp_path)
    ray.get(the_driver(tmp_path).__ray_call__.remote(shorten))

    def gone():
        try:
            the_driver(tmp_path)
        except ValueError:
            return True
        return False

    wait_for(gone)
    check(raysim.attach(folder), undisturbed, uri)


def shorten(driver):
    """In the driver's process, to which Ray sent the class by value, with globals of its own, and methods in a wrapper."""
    names = inspect.unwrap(type(driver)._main).__globals__
    assert names["UNATTENDED_SECONDS"] == 60
    names["UNATTENDED_SECONDS"] = 1


@pytest.mark.slow
def test_a_run_that_nobody_watches_can_be_stopped_and_resumed(tmp_path, undisturbed):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = killed_command(tmp_path)
    with pytest.raises(raysim.RunKilled, match="raysim resume"):
        raysim.attach(folder, stop=True)
    (run,) = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "KILLED"
    check(raysim.resume(run.info.run_id, uri=uri), undisturbed, uri)


@pytest.mark.slow
def test_a_change_that_changes_results_is_refused_with_the_difference(tmp_path, undisturbed):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    finished = raysim.run(tiny(**{**AT_ONCE, "rounds": 2}, tracking={"uri": uri}, resources=ONE_ACTOR)).runs[0]
    (folder,) = studies(tmp_path)
    with pytest.raises(raysim.ConfigError, match=r"train\.batch_size: was 8, is 4\nthe run can.t go on with changes"):
        raysim.resume(folder, ["train.batch_size=4"])
    assert raysim.resume(folder, ["resources.num_actors=2"]).runs[0].checksums == finished.checksums
    with pytest.raises(raysim.ConfigError, match=r"rounds: was 2, is 1"):
        raysim.resume(folder, ["rounds=1"])
    with pytest.raises(raysim.ConfigError, match=r"there is no folder nothing, and no such run"):
        raysim.resume("nothing", uri=uri)
    with pytest.raises(raysim.ConfigError, match=r"is no folder of checkpoints"):
        raysim.resume(str(tmp_path))
    with pytest.raises(raysim.ConfigError, match=r"has 1 folders of checkpoints; name one of them:\n  .* \(finished\)"):
        raysim.resume(str(tmp_path / "checkpoints"))
    assert raysim.attach(folder).runs[0].checksums == finished.checksums  # looked at a moment too late
    more = raysim.resume(folder, ["rounds=8", "resources.num_actors=1"])  # more rounds than it was asked for
    check(more, undisturbed, uri)
    (parameters,) = FinishedRuns(uri, "tiny").parameters().values()
    assert parameters["rounds"] == "8"


CODE = """
from raysim.algorithms import FederatedAlgorithm

class Mine(FederatedAlgorithm):
    def server_step(self, shared, server_state, mean, ctx):
        if ctx.round == 2 and {broken}:
            raise ValueError("a bug")
        return shared + {rate} * (mean["shared"] - shared), server_state
"""


@pytest.mark.slow
def test_a_bug_that_is_mended_before_the_first_checkpoint_starts_another_run(tmp_path, monkeypatch):
    """In MLflow no run has rounds of both."""
    uri, file = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mended_of_test.py"
    monkeypatch.syspath_prepend(tmp_path)
    file.write_text(CODE.format(broken=True, rate=1.0))
    config = tiny(algorithm={"name": "mended_of_test:Mine"}, rounds=3, tracking={"uri": uri}, resources=ONE_ACTOR)
    with pytest.raises(raysim.RunFailed, match="a bug"):
        raysim.run(config)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    (failed,) = client.search_runs([experiment])
    file.write_text(CODE.format(broken=False, rate=0.5))
    (folder,) = studies(tmp_path)
    said = []
    result = raysim.resume(folder, watch=lambda s, *_: said.extend(e for e in s.events if isinstance(e, str))).runs[0]
    assert sum("the code of the algorithm changed" in line for line in said) == 1
    assert result.run_id != failed.info.run_id
    assert steps(uri, result.run_id) == list(enumerate(result.history["train/loss"]))
    assert [step for step, _ in steps(uri, failed.info.run_id)] == [0]  # round 1 was not evaluated yet
    found = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    assert found == {failed.info.run_id: "KILLED", result.run_id: "FINISHED"}


@pytest.mark.slow
def test_another_algorithm_under_the_same_name_is_refused(tmp_path, monkeypatch):
    """Its finished runs, too: they are not skipped as if nothing had changed."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.syspath_prepend(tmp_path)
    code = "from raysim.algorithms import FederatedAlgorithm\n\nclass Mine(FederatedAlgorithm):\n    pi: int = 3\n"
    (tmp_path / "mine_of_test.py").write_text(code)
    config = tiny(algorithm={"name": "mine_of_test:Mine"}, rounds=1, tracking={"uri": uri}, resources=ONE_ACTOR)
    raysim.run(config)
    (folder,) = studies(tmp_path)
    (tmp_path / "mine_of_test.py").write_text(code.replace("3", "4"))
    with pytest.raises(raysim.ConfigError, match="the code of the algorithm changed"):
        raysim.resume(folder)


@pytest.mark.slow
def test_without_checkpoints_nothing_is_left_behind(tmp_path, undisturbed):
    changes = {**AT_ONCE, "checkpoint": {"every": None}, "resources": ONE_ACTOR}
    config = tiny(**changes, tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    assert raysim.run(config).runs[0].checksums == undisturbed.checksums
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow  # the long fault injection has them, too
def test_simulated_participants_are_the_same_in_every_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    changes = {"cohort": {"fraction": 1.0, "dropout": 0.4, "stragglers": 0.5}, "rounds": 3}
    one, other = (
        raysim.run(tiny(**changes, tracking={"uri": uri}, resources={"num_actors": n})).runs[0] for n in (1, 3)
    )
    assert one.checksums == other.checksums
    reported = one.history["cohort/reported"]
    assert (one.history["cohort/size"] == 8).all()
    assert reported.min() < 8
    assert (one.history["communication/up_bytes"] == reported * 4 * len(one.shared)).all()


@pytest.mark.slow
def test_what_lies_in_a_study_folder_is_json_and_safetensors(undisturbed, undisturbed_folder):
    files = [path for path in (undisturbed_folder / "checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors", ""}
    assert [path.name for path in files if not path.suffix] == ["lock"]
    state = json.loads(next(path for path in files if path.name == "study.json").read_text())
    assert state["finished"]
    assert state["runs"][0]["checksums"].keys() == {"shared", "personal", "metrics"}
