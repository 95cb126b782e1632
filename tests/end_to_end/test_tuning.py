"""Tuning on real Ray, MLflow and Optuna: what it leaves, what it goes by, and what happens when it is interrupted."""

import json
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from mlflow.tracking import MlflowClient
from sklearn.datasets import load_digits

import raysim
from raysim.cli import main
from raysim.config.schema import Config
from raysim.data.loading import load_data
from raysim.data.partition_file import save_partition

from commands import start_command
from configs import TINY

pytestmark = pytest.mark.usefixtures("cluster")
LR = "train.optimizer.lr"
BASE = {
    **TINY,
    "rounds": 4,
    "data": {**TINY["data"], "validation_fraction": 0.3},
    "algorithm": {"name": "local"},
    "train": {"local_epochs": 2, "batch_size": 8, "optimizer": {"name": "adamw", "lr": 0.01}},
    "resources": {**TINY["resources"], "num_actors": 1},
}
DIVERGES = {"name": "diverges", "algorithm": {"name": "fedprox"}, "tune": {"space": {"algorithm.mu": [0.1, 1e30]}}}


def tuning(folder, monkeypatch, **changes):
    monkeypatch.chdir(folder)
    return Config.model_validate({**BASE, "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}, **changes})


def children(uri, parent):
    client = MlflowClient(uri)
    experiment = client.get_run(parent).info.experiment_id
    return client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")


@pytest.mark.slow
def test_a_planted_method_with_a_broken_learning_rate_loses_untuned_and_wins_tuned(tmp_path, monkeypatch):
    broken = {"name": "planted", "seeds": [0, 1], "train": {"optimizer": {"lr": 1e-7}}}
    shared = {"name": "fedavg", "seeds": [0, 1], "algorithm": {"name": "fedavg"}}
    tune = {"trials": 4, "seeds": [100], "space": {LR: {"low": 1e-4, "high": 0.1, "log": True}}}
    config = tuning(tmp_path, monkeypatch, tune=tune, study=[broken, shared])
    lines = []
    found = raysim.tune(config, notify=lines.append)
    assert found.trials.groupby("entry")["trial"].apply(list).to_dict() == {
        "planted": [1, 2, 3, 4],
        "fedavg": [1, 2, 3, 4],
    }
    assert found.best["planted", "tuned"][LR] > 1e-3
    table, caption = found.ranking
    assert list(table.columns) == ["method", "default", "lr only", "tuned"]
    rows = table.set_index("method")
    assert rows.loc["planted", "default"].startswith("2.")
    assert rows.loc["planted", "tuned"].startswith("1.")
    assert rows.loc["planted", "tuned"] == rows.loc["planted", "lr only"]
    assert "percent on test samples, mean over 2 seeds that nothing was tuned on" in caption
    # In MLflow: the study, the tuning with its report, a run for each search, and the trials below it.
    client = MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name("tiny · tuning").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    whole = runs["tuning · tiny"]
    files = {file.path for file in client.list_artifacts(whole.info.run_id)}
    assert files >= {"tuning.md", "tuned.yaml", "trials.csv", "ranking.csv", "best_so_far.png", "slices-00.png"}
    assert "| planted, tuned | 4 |" in whole.data.tags["mlflow.note.content"]
    searches = {run.info.run_name: run for run in children(config.tracking.uri, whole.info.run_id)}
    assert searches.keys() == {"tune · planted", "tune · fedavg"}
    trials = children(config.tracking.uri, searches["tune · planted"].info.run_id)
    states = {run.data.tags["raysim.trial"]: run.data.tags["raysim.trial_state"] for run in trials}
    known = found.trials[found.trials["entry"] == "planted"].set_index("trial")["state"]
    assert states == {str(trial): state for trial, state in known.items()}
    pruned = [run for run in trials if run.data.tags["raysim.trial_state"] == "pruned"]
    assert all("pruned" in run.data.tags["raysim.ended_early"] for run in pruned)
    assert {run.info.status for run in [*runs.values(), *trials]} == {"FINISHED"}
    assert not list(tmp_path.glob("checkpoints/tuning-*"))  # nothing goes on from a trial that has ended
    # The file is a study as any other, and `raysim compare` ranks it.
    assert yaml.safe_load((tmp_path / "tuned.yaml").read_text())["study"][0]["name"] == "planted · default"
    result = CliRunner().invoke(main, ["compare", "tiny", "--uri", config.tracking.uri, "--format", "csv"])
    assert "the same ranked under each setting" in result.output
    # A second time there is nothing left to do.
    again = raysim.tune(config, notify=lines.append)
    assert any("was finished before" in line for line in lines)
    pd.testing.assert_frame_equal(again.trials, found.trials)
    assert again.final.runs[0].checksums == found.final.runs[0].checksums
    (tmp_path / "tuned.yaml").write_text("mine: 1")
    with pytest.raises(raysim.ConfigError, match=r"tuned\.yaml: is a file of yours"):
        raysim.tune(config)


@pytest.mark.slow
def test_the_test_samples_have_no_influence(tmp_path, monkeypatch):
    """With all of their labels permuted the same file is written, bit by bit."""
    digits = load_digits()
    images, labels = (digits.images[:600] * 15).astype(np.uint8), digits.target[:600]
    np.savez(tmp_path / "first.npz", images=images, labels=labels)
    data = {**BASE["data"], "name": "npz", "subset": None, "root": str(tmp_path / "first.npz")}
    _, partition = load_data(Config.model_validate({**BASE, "data": data}))
    save_partition(partition, tmp_path / "split.npz")
    tests = partition.tests(np.arange(partition.num_clients))
    permuted = labels.copy()
    permuted[tests] = np.random.default_rng(0).permutation(labels[tests])
    assert (permuted != labels).sum() > len(tests) / 2
    split = {"name": "file", "path": str(tmp_path / "split.npz")}
    data = {**data, "root": str(tmp_path / "data.npz"), "partition": split, "validation_fraction": 0.0}
    study = [{"name": "fedprox", "seeds": [0], "algorithm": {"name": "fedprox"}}]
    config = tuning(tmp_path, monkeypatch, data=data, tune={"trials": 3, "seeds": [100], "lr_only": False}, study=study)
    texts, accuracies = [], []
    for name, values in (("true", labels), ("permuted", permuted)):
        np.savez(tmp_path / "data.npz", images=images, labels=values)
        tracking = config.tracking.model_copy(update={"uri": f"sqlite:///{tmp_path}/{name}/mlflow.db"})
        (tmp_path / name).mkdir()
        own = config.model_copy(update={"tracking": tracking})
        found = raysim.tune(own, tmp_path / name / "tuned.yaml", final=False, notify=print)
        texts.append((tmp_path / name / "tuned.yaml").read_text().replace(f"{tmp_path}/{name}", ""))
        (first, *_) = found.trials["runs"]
        accuracies.append(MlflowClient(tracking.uri).get_run(first).data.metrics["personalized/accuracy_mean"])
    assert texts[0] == texts[1]
    assert accuracies[0] != accuracies[1]


@pytest.mark.slow
def test_a_tuning_that_is_killed_goes_on_with_the_same_trials(tmp_path, monkeypatch):
    study = [{"name": "fedprox", "seeds": [0], "algorithm": {"name": "fedprox"}}]
    tune = {"trials": 3, "seeds": [100, 101], "lr_only": False}
    expected = tmp_path / "expected"
    expected.mkdir()
    whole = raysim.tune(tuning(expected, monkeypatch, tune=tune, study=study), final=False, notify=print)
    config = tuning(tmp_path, monkeypatch, tune=tune, study=study)
    (tmp_path / "tuning.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    process = start_command(tmp_path, "tune", "tuning.yaml", "--no-final")
    until = time.monotonic() + 90
    while (tmp_path / "log").read_text().count(": trial ") < 1:  # and another is under way
        assert time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lines = []
    found = raysim.tune(config, final=False, notify=lines.append)
    assert len([line for line in lines if ": trial " in line]) in (1, 2)  # of the three, those that were left
    results = ["entry", "setting", "trial", "state", "value", "updates", "values", "reason"]
    pd.testing.assert_frame_equal(found.trials[results], whole.trials[results])
    ours, theirs = ((folder / "tuned.yaml").read_text() for folder in (tmp_path, expected))
    assert ours.replace(str(tmp_path), "") == theirs.replace(str(expected), "")


@pytest.mark.slow
def test_a_trial_that_diverges_counts_and_several_run_at_a_time(tmp_path, monkeypatch):
    tune = {
        "trials": 4,
        "seeds": [100],
        "pruner": "none",
        "sampler": "grid",
        "lr_only": False,
        "space": {LR: [0.01, 0.1]},
    }
    resources = {**BASE["resources"], "concurrent_runs": 2}
    train = {**BASE["train"], "optimizer": {"name": "sgd", "lr": 0.1}}
    config = tuning(tmp_path, monkeypatch, study=[DIVERGES], tune=tune, resources=resources, train=train)
    found = raysim.tune(config, final=False, notify=print)
    states = {row["values"]: (row["state"], row["reason"]) for row in found.trials.to_dict("records")}
    assert len(states) == 4
    for values, (state, reason) in states.items():
        diverged = json.loads(values)["algorithm.mu"] == 1e30
        assert (state, "rejected" in reason) == (("failed", True) if diverged else ("complete", False))
    assert found.best["diverges", "tuned"]["algorithm.mu"] == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "tune: there is no such block"),
        ({"tune": {"seeds": [0, 100]}}, r"tune\.seeds: 0 is a seed of the study"),
        (
            {"tune": {}, "data": TINY["data"]},
            r"tune\.metric: .* needs validation samples: set data\.validation_fraction",
        ),
        (
            {"tune": {"metric": "validation/accuracy"}},
            "no run logs validation/accuracy; did you mean validation/accuracy_",
        ),
        ({"tune": {}, "study": [{"name": "a", "tune": None}]}, "an entry may change the space only"),
        ({"tune": {}, "study": [{"name": "a", "tune": {"trials": 3}}]}, "an entry may change the space only"),
        (
            {
                "tune": {"space": {"algorithm.mu": [1.0]}},
                "study": [{"name": "a"}, {"name": "b", "algorithm": {"name": "fedprox"}}],
            },
            r"algorithm\.mu: the entry 'a' \(local\) has no such key",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path, monkeypatch, changes, message):
    config = tuning(tmp_path, monkeypatch, **changes)
    with pytest.raises((raysim.ConfigError, raysim.RunFailed), match=message):
        raysim.tune(config, final=False, notify=print)
