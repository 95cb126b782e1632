"""``raysim compare`` on a store of two methods and two seeds, written as the driver writes them."""

import csv

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from raysim.cli import main
from raysim.tracking.mlflow_reader import FinishedRuns
from raysim.tracking.mlflow_store import MLflowStore

ACCURACY = {("base", 0): [0.2, 0.4], ("base", 1): [0.3, 0.3], ("other", 0): [0.3, 0.6], ("other", 1): [0.4, 0.3]}


def fill(tracker, scale=1.0, **parameters):
    parent = tracker.start("study", {}, {"raysim.kind": "study"})
    for (name, seed), accuracy in ACCURACY.items():
        accuracy = scale * np.array(accuracy)
        size = 0 if name == "base" else 250
        given = {"seed": seed, "algorithm.name": f"fed{name}", "algorithm.scale": size, "model.state_parameters": size}
        child = tracker.start(f"{name} · seed {seed}", given | parameters, {"raysim.entry": name}, parent)
        for round_ in range(2):
            metrics = {"personalized/accuracy_mean": float(accuracy.mean()) * (round_ + 1) / 2}
            metrics["aggregated/accuracy_mean"] = metrics["personalized/accuracy_mean"] / 2
            metrics |= {
                "personalized/auc_mean": 0.5,
                "aggregated/auc_mean": 0.5,
                "sensitivity/qkv": 0.4,
                "sensitivity/qkv_spread": 1.0,
            }
            metrics |= {"communication/down_bytes": 1e6, "communication/up_bytes": 0.0, "system/round_seconds": 1.0}
            tracker.log_round(child, round_, metrics)
        over_rounds = np.stack([accuracy / 2, accuracy])
        arrays = {"rounds": np.array([0, 1]), "personalized": over_rounds, "aggregated": over_rounds / 2}
        tracker.log_arrays(child, arrays, "accuracy.npz")
        tracker.end(child, "FINISHED")
    tracker.end(parent, "FINISHED")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    fill(MLflowStore(uri, "one"))
    fill(MLflowStore(uri, "two"), scale=0.5)
    return uri


@pytest.fixture
def invoke(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def compare(*arguments):
        result = CliRunner().invoke(main, ["compare", "--uri", uri, *arguments])
        assert not isinstance(result.exception, Exception), result.exception
        return result

    return compare


def cells(output, name):
    return next(line for line in output.splitlines() if line.split()[:1] == [name]).split()


def test_a_table_of_the_last_round_or_the_mean_of_several(invoke):
    assert " ".join(cells(invoke("one").output, "other")) == "other 2 40.0 ± 7.1 50.0 ± 0.0 20.0 ± 3.5 1.00 1.00"
    assert (
        " ".join(cells(invoke("one", "--last", "2").output, "other"))
        == "other 2 30.0 ± 5.3 50.0 ± 0.0 15.0 ± 2.7 1.00 1.00"
    )


def test_data_sets_side_by_side(invoke):
    caption, _, header, _, *rows = invoke("one", "two", "--format", "markdown").output.splitlines()
    assert caption == "*one, two: as trained, all clients, round 2, percent*"
    of = ("seeds", "accuracy", "AUC", "after aggregation")
    assert header == f"| name | {' | '.join(f'{data}: {name}' for data in ('one', 'two') for name in of)} |"
    auc = "**50.0 ± 0.0**"
    assert rows == [
        f"| base | 2 | <u>30.0 ± 0.0</u> | {auc} | <u>15.0 ± 0.0</u> "
        f"| 2 | <u>15.0 ± 0.0</u> | {auc} | <u>7.5 ± 0.0</u> |",
        f"| other | 2 | **40.0 ± 7.1** | {auc} | **20.0 ± 3.5** | 2 | **20.0 ± 3.5** | {auc} | **10.0 ± 1.8** |",
    ]


def test_the_other_protocol_is_an_option_and_in_every_table(invoke):
    output = " ".join(invoke("one", "--protocol", "aggregated", "--baseline", "base").output.split())
    assert output.count("after aggregation, all clients, round 2") == 3  # the comparison, fairness, gains
    assert "other 2 20.0 ± 3.5 50.0 ± 0.0 40.0 ± 7.1" in output
    assert "other +5.0 [" in output


def test_groups_by_algorithm_or_by_any_parameter(invoke):
    assert cells(invoke("one", "--group-by", "algorithm").output, "fedother")[1] == "2"
    assert cells(invoke("one", "--group-by", "algorithm.scale").output, "250")[1] == "2"
    result = invoke("one", "--group-by", "algorithm.scal")
    assert result.exit_code == 2
    assert "no run of 'one' has a parameter 'algorithm.scal'" in result.output


def test_gains_are_paired_by_seed_and_client(invoke):
    lines = invoke("one", "--baseline", "base", "--format", "csv").output.splitlines()
    header, row = csv.reader(lines[-2:])
    found = dict(zip(header, row, strict=True))
    # Differences of the clients: 10 and 20 points for seed 0, 10 and 0 for seed 1.
    assert (found["name"], float(found["gain"]), found["wins"], found["ties"], found["losses"]) == (
        "other",
        10,
        "3",
        "1",
        "0",
    )
    half = 12.706 * 5  # Student's t with one degree of freedom, standard error of the seeds' means of 15 and 5 points
    assert float(found["low"]) == pytest.approx(10 - half, abs=0.01)
    assert float(found["high"]) == pytest.approx(10 + half, abs=0.01)
    assert (float(found["kB"]), float(found["per kB"])) == (1.0, 10.0)
    assert found["table"].startswith("one: points gained over base, client by client")
    assert "+10.0 [" in invoke("one", "--baseline", "base").output
    earlier = invoke("one", "--baseline", "base", "--last", "2", "--format", "csv").output.splitlines()[-1]
    assert float(earlier.split(",")[1]) == 7.5


def test_pictures(invoke, tmp_path):
    invoke("one", "two", "--plot", "c.png", "--baseline", "base", "--plot-gains", "g.pdf")
    assert {path.name for path in tmp_path.iterdir()} == {"c_one.png", "c_two.png", "g_one.pdf", "g_two.pdf"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "--baseline", "bas"], "--baseline bas: 'one' has no such group; it has: base, other"),
        (["one", "--plot", "c.xyz"], "--plot: c.xyz should end in .png"),
        (["one", "--plot", "nowhere/c.png"], "--plot: there is no folder nowhere"),
        (["one", "--plot-gains", "c.png"], "--plot-gains needs one --baseline NAME"),
        (["three"], "there is no experiment 'three'"),
        ([], "Missing argument"),
    ],
)
def test_mistakes(invoke, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_runs_on_other_data_are_not_paired(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflowStore(uri, "mixed")
    parent = tracker.start("study", {}, {"raysim.kind": "study"})
    for name, alpha in (("base", 0.1), ("other", 0.5)):
        given = {"seed": 0, "data.partition.alpha": alpha, "model.state_parameters": 0}
        child = tracker.start(name, given, {"raysim.entry": name}, parent)
        metrics = {"personalized/accuracy_mean": 0.5, "system/round_seconds": 1.0}
        metrics |= {"communication/down_bytes": 0.0, "communication/up_bytes": 0.0}
        tracker.log_round(child, 0, metrics)
        tracker.end(child, "FINISHED")
    result = CliRunner().invoke(main, ["compare", "--uri", uri, "mixed", "--baseline", "base"])
    assert result.exit_code == 2
    assert "other: in data.partition.alpha it differs from base, so clients can't be paired" in result.output


def test_groups_that_can_not_be_compared_are_named(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflowStore(uri, "a/b")
    parent = tracker.start("study", {}, {"raysim.kind": "study"})
    for name, seed in (("base", 0), ("other", 0), ("late", 7)):
        given = {"seed": seed, "model.state_parameters": 0}
        child = tracker.start(name, given, {"raysim.entry": name}, parent)
        metrics = {"personalized/accuracy_mean": 0.5, "system/round_seconds": 1.0}
        metrics |= {"communication/down_bytes": 0.0, "communication/up_bytes": 0.0}
        tracker.log_round(child, 0, metrics)
        tracker.log_arrays(child, {"rounds": np.zeros(1), "personalized": np.array([[0.5, 0.25]])}, "accuracy.npz")
        tracker.end(child, "FINISHED")
    invoke = lambda *arguments: CliRunner().invoke(main, ["compare", "--uri", uri, "a/b", *arguments])  # noqa: E731
    assert "not compared: late: it shares no seed with base" in invoke("--baseline", "base").output
    assert "clients, 1 seed" in invoke("--baseline", "base").output
    alone = invoke("--baseline", "late")
    assert alone.exit_code == 2
    assert "nothing in 'a/b' to compare with it: base: it shares no seed with late" in " ".join(alone.output.split())


def test_a_table_says_who_gains_and_how_even_methods_are(invoke):
    output = invoke("one", "--baseline", "base").output
    assert "fairness over clients" in output
    assert "4 pairs, 2 seeds" in output
    even, uneven = (
        next(line for line in output.splitlines() if name in line and "clients, 2" in line) for name in NAMES
    )
    assert even.split()[1:5] == ["5.0", "25.0", "35.0", "0.083"]
    assert uneven.split()[1:5] == ["10.0", "30.0", "50.0", "0.119"]


NAMES = ("base", "other")


def test_the_best_round_is_called_optimistic(invoke):
    output = invoke("one", "--best").output
    assert "optimistic" in output
    assert " ".join(cells(output, "other")) == "other 2 40.0 ± 7.1 50.0 ± 0.0 20.0 ± 3.5 1.00 1.00"
    for form in ("csv", "latex", "markdown"):
        output = invoke("one", "--best", "--baseline", "base", "--format", form).stdout
        main, gains = output.split("\n\n")[-2:] if form != "markdown" else output.split("| base |")
        assert "optimistic" in main
        assert "optimistic" in gains
    assert "exclude each other" in invoke("one", "--best", "--last", "2").output


def test_what_is_no_table_does_not_go_into_a_file(invoke, tmp_path):
    result = invoke("one", "--format", "csv", "--plot", "c.png")
    assert "picture: c.png" in result.stderr
    assert "picture" not in result.stdout


def test_the_cost_of_a_target(invoke):
    lines = invoke("one", "--target", "0.4", "--format", "csv").output.splitlines()
    title = "one: until the mean accuracy is 40 %; as trained, all clients"
    assert lines[-2:] == [f'base,0,2,,,"{title}"', f'other,1,2,2,2,"{title}"']


def test_all_pictures_go_to_a_folder(invoke, tmp_path, uri):
    result = invoke("one", "--plots", "no/pictures")
    assert (result.exit_code, "--plots: no/pictures can't be made" in result.output) == (2, True)
    tracker = FinishedRuns(uri, "one")
    clients = (
        "client,personalized_accuracy,train_samples,test_samples,label_entropy,domain\n0,0.5,9,3,1.0,\n1,0.4,5,2,0.5,\n"
    )
    for run_id in tracker.parameters():
        tracker.log_text(run_id, clients, "clients.csv")
    assert invoke("one", "--plots", "pictures", "--dark").exit_code == 0
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"comparison.png", "clients.png", "comparison.csv", "fairness.csv"}
    assert invoke("one", "--plots", "earlier", "--last", "2", "--baseline", "base").exit_code == 0
    names |= {"gains_over_base.csv", "gains_over_base.png", "who_gains_over_base.png"}
    assert {path.name for path in (tmp_path / "earlier").iterdir()} == names
    table = pd.read_csv(tmp_path / "earlier" / "comparison.csv").set_index("name")
    assert table.loc["other", "accuracy"] == "30.0 ± 5.3"
    assert pd.read_csv(tmp_path / "earlier" / "gains_over_base.csv")["gain"].tolist() == pytest.approx([7.5])


def test_runs_of_one_group_that_differ_are_told(invoke, uri, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflowStore(uri, "mixed")
    parent = tracker.start("study", {}, {"raysim.kind": "study"})
    for seed, clients in enumerate((6, 8)):
        given = {"seed": seed, "data.num_clients": clients, "model.state_parameters": 0, "algorithm.name": "fedavg"}
        child = tracker.start(f"a · seed {seed}", given, {"raysim.entry": "a"}, parent)
        metrics = {"personalized/accuracy_mean": 0.5, "system/round_seconds": 1.0}
        tracker.log_round(child, 0, metrics | {"communication/down_bytes": 0.0, "communication/up_bytes": 0.0})
        tracker.end(child, "FINISHED")
    output = CliRunner().invoke(main, ["compare", "--uri", uri, "mixed"]).output
    assert "warning: the runs of a differ in data.num_clients: not seeds of one experiment" in output


def test_runs_are_chosen_by_their_id(invoke, uri):
    ids = list(FinishedRuns(uri, "one").parameters())
    output = invoke("one", "--run", ids[0], "--run", ids[2]).output
    assert cells(output, "base")[1] == cells(output, "other")[1] == "1"
    assert "is no finished run or study of the experiment 'two'" in invoke("two", "--run", ids[0]).output


def test_a_protocol_that_differs_is_told_in_any_table(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflowStore(uri, "mixed")
    parent = tracker.start("study", {}, {"raysim.kind": "study"})
    for name, rounds, digest, lr in (("base", 5, "a", 0.1), ("longer", 9, "a", 0.1), ("other", 5, "b", 0.01)):
        given = {"seed": 0, "rounds": rounds, "model.state_parameters": 0, "algorithm.name": name}
        given |= {"train.optimizer.lr": lr, "model.personal_parameters": rounds}
        child = tracker.start(name, given, {"raysim.entry": name, "raysim.dataset_digest": digest}, parent)
        metrics = {"personalized/accuracy_mean": 0.5, "system/round_seconds": 1.0}
        tracker.log_round(child, 0, metrics | {"communication/down_bytes": 0.0, "communication/up_bytes": 0.0})
        tracker.end(child, "FINISHED")
    output = CliRunner().invoke(main, ["compare", "--uri", uri, "mixed"]).output
    assert "warning: longer differs from base in rounds: not the same experiment" in output
    assert "warning: other differs from base in dataset: not the same experiment" in output
    assert "note: other differs from base in train.optimizer.lr\n" in output
    assert "personal_parameters" not in output
    assert "no client-by-client comparison: run" in output


def test_what_is_missing_of_a_study_is_listed_with_its_reason(uri, invoke):
    store = MLflowStore(uri, "survivors")
    parent = store.start("study", {"study.runs": 5}, {"raysim.kind": "study"})
    restarted = [("a", 1, "FAILED"), ("a", 1, "FINISHED")]  # as after a GPU without memory
    for name, seed, status in [("a", 0, "FINISHED"), *restarted, ("b", 0, "FINISHED"), ("b", 1, "FAILED")]:
        given = {"seed": seed, "algorithm.name": name}
        run = store.start(f"{name} · seed {seed}", given, {"raysim.entry": name}, parent)
        metrics = {"communication/down_bytes": 1e6, "communication/up_bytes": 0.0, "system/round_seconds": 1.0}
        store.log_round(run, 0, {"personalized/accuracy_mean": 0.5, **metrics})
        store.log_arrays(run, {"rounds": np.array([0]), "personalized": np.full((1, 2), 0.5)}, "accuracy.npz")
        if status == "FAILED":
            store.set_tags(run, {"raysim.failure": "train of client 3: ZeroDivisionError"})
        store.end(run, status)
    output = invoke("survivors").output
    assert (
        "warning: not in these numbers: b · seed 1, FAILED (train of client 3: ZeroDivisionError); "
        "1 run of the study that never started" in output
    )
    assert "warning: not all have 2 seeds: b has 1" in output
    assert "warning: not in these numbers" not in invoke("one").output


def mixed(store, **parameters):
    """A study of two runs with the same numbers that differ in a parameter; of four clients two are evaluated."""
    parent = store.start("study", {}, {"raysim.kind": "study"})
    for i, name in enumerate(("a", "b")):
        given = {"seed": 0, "algorithm.name": name, "model.state_parameters": 0, "data.num_clients": 4}
        given |= {key: values[i] for key, values in parameters.items()}
        run = store.start(name, given, {"raysim.entry": name}, parent)
        row = {"personalized/accuracy_mean": 0.5 + i / 10, "aggregated/accuracy_mean": 0.4 - i / 10}
        row |= {"communication/down_bytes": 1e6, "communication/up_bytes": 0.0, "system/round_seconds": 1.0}
        for round_ in range(2):
            store.log_round(run, round_, row)
        values = np.full((2, 4), np.nan)
        values[:, :2] = 0.5 + i / 10
        arrays = {"rounds": np.array([0, 1]), "personalized": values, "aggregated": values - 0.1 - i / 5}
        store.log_arrays(run, arrays, "accuracy.npz")
        store.end(run, "FINISHED")


def test_runs_of_two_protocols_are_shown_after_aggregation(invoke, uri):
    mixed(MLflowStore(uri, "protocols"), **{"evaluate.protocol": ("paper", "aggregated")})
    output = " ".join(invoke("protocols").output.split())
    assert "runs differ in evaluate.protocol: all numbers are after aggregation; --protocol chooses" in output
    assert "protocols: after aggregation, all 4 clients, round 2, percent" in output
    assert "a 1 40.0" in output
    assert "b 1 30.0" in output


def test_runs_about_different_clients_are_refused(invoke, uri):
    mixed(MLflowStore(uri, "clients"), **{"evaluate.clients": ("all", "cohort")})
    result = invoke("clients")
    assert result.exit_code == 2
    assert "its runs differ in evaluate.clients (all, cohort)" in result.output


def test_all_tables_are_about_the_same_clients_and_rounds(invoke, uri):
    """The mean of the accuracies that gains and fairness are made of is the accuracy in the table above them."""
    mixed(MLflowStore(uri, "cohorts"), **{"evaluate.clients": ("cohort", "cohort")})
    output = " ".join(invoke("cohorts", "--baseline", "a").output.split())
    assert output.count("as trained, the cohort of each round, round 2") == 3
    assert "b 1 60.0" in output
    assert "b +10.0 [" in output
    assert "2 pairs, 1 seed" in output
    several = " ".join(invoke("cohorts", "--last", "2").output.split())
    assert "as trained, the cohort of each round, mean of rounds 1 to 2" in several
    assert "no client-by-client comparison: with evaluate.clients: cohort every round is about other clients" in several


def test_an_earlier_run_whose_numbers_were_after_aggregation_is_refused(invoke, uri):
    store = MLflowStore(uri, "earlier")
    run = store.start("a", {"seed": 0, "evaluate.protocol": "aggregated"}, {"raysim.entry": "a"})
    store.log_round(run, 0, {"personalized/accuracy_mean": 0.5, "system/round_seconds": 1.0})
    store.end(run, "FINISHED")
    for protocol in ("paper", "aggregated"):
        result = invoke("earlier", "--protocol", protocol)
        assert result.exit_code == 2
        assert "was logged by an earlier version of raysim" in result.output
