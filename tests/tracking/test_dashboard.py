"""``raysim dashboard``: its server, and what a person sees and clicks in a browser."""

import json
import socket
import urllib.request

import pytest
from click.testing import CliRunner

from raysim.cli import main
from raysim.tracking.dashboard import VIEW_TAG, page_of, saved_view
from raysim.tracking.mlflow_store import MLflowStore

import browser

NAMES = [f"{name} · seed {seed}" for name in ("fedperfix", "fedavg", "local") for seed in range(3)]


@pytest.mark.slow
def test_a_study_leaves_a_view_with_its_runs_and_what_differs(quickstart):
    folder, result = quickstart
    tracker = MLflowStore(f"sqlite:///{folder}/mlflow.db", "quickstart", create=False)
    assert tracker.has_view()
    value = json.loads(tracker._client.get_experiment(tracker.experiment_id).tags[VIEW_TAG])
    state = json.loads(value["state"])
    assert result.parent_run_id in state["searchFilter"]
    assert state["selectedColumns"][:2] == ["params.`seed`", "params.`algorithm.name`"]


def test_the_view_names_charts_and_parameters():
    state = json.loads(
        json.loads(saved_view("p", "name", ["algorithm.name", "train.optimizer.lr"], "personalized"))["state"]
    )
    charts = {(c["type"], c.get("metricKey")) for c in state["compareRunCharts"]}
    assert {("LINE", "personalized/accuracy_mean"), ("BAR", "personalized/accuracy_mean"), ("PARALLEL", None)} <= charts
    assert ("LINE", "aggregated/accuracy_mean") in charts
    sections = {s["uuid"] for s in state["compareRunSections"]}
    assert {c["metricSectionId"] for c in state["compareRunCharts"]} == sections
    assert "params.`train.optimizer.lr`" in state["selectedColumns"]
    same = json.loads(json.loads(saved_view("p", "name", [], "personalized"))["state"])
    assert not any(c["type"] == "PARALLEL" for c in same["compareRunCharts"])
    means = json.loads(json.loads(saved_view("p", "name", [], "personalized", means=True))["state"])
    assert means["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "raysim.entry"}]
    assert page_of("7", view=False) == "#/experiments/7/runs"


@pytest.mark.slow
def test_it_serves_the_store_and_ends_with_ctrl_c(quickstart):
    folder, _ = quickstart
    with browser.dashboard(cwd=folder) as address:
        assert urllib.request.urlopen(f"{address}health", timeout=10).read() == b"OK"
    with pytest.raises(OSError, match=r"refused"):
        urllib.request.urlopen(f"{address}health", timeout=10)


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = CliRunner().invoke(main, ["dashboard"])
    assert (result.exit_code, "there is no MLflow store sqlite:///" in result.output) == (2, True)


@pytest.mark.slow
def test_addresses_that_can_not_be_used(quickstart, monkeypatch):
    folder, _ = quickstart
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in [
            (["--port", str(port)], f"--port {port}, --host 127.0.0.1: Address already in use"),
            (["--host", "198.51.100.1"], "--host 198.51.100.1: Cannot assign requested address"),
            (["--host", "not a host"], "--host not a host: "),
        ]:
            result = CliRunner().invoke(main, ["dashboard", "--no-browser", *arguments])
            assert (result.exit_code, message in result.output) == (2, True), result.output


@pytest.mark.slow
def test_a_person_compares_the_runs_of_a_study(quickstart):
    """Opens the comparison, sees a line per run, selects all runs, compares them, and looks at one."""
    if reason := browser.missing():
        pytest.skip(reason)
    folder, result = quickstart
    with browser.dashboard("--experiment", "quickstart", cwd=folder) as address, browser.chromium() as driver:
        page = browser.Page(driver)
        page.open(address)
        page.see("latest study: quickstart", *NAMES)
        page.close_assistant()
        page.until(
            lambda: page.lines_of_chart("personalized/accuracy_mean") == 9, "a chart of accuracy with nine lines"
        )

        page.open(address.replace("viewStateShareKey=raysim", "viewStateShareKey=raysim-means"))
        lines = [f"{name} (personalized/accuracy_mean)" for name in ("fedperfix", "fedavg", "local")]
        page.see("latest study: quickstart, means over seeds", "Group by: raysim.entry", *lines)

        page.open(address)
        page.see(*NAMES)
        page.click(".ag-header .ag-checkbox-input-wrapper")
        page.click("button", "Compare")
        page.see("Comparing 9 Runs from 1 Experiment", *NAMES)
        page.until(lambda: "compare-runs" in driver.current_url, "the comparison")

        page.open(address.split("/runs?")[0] + f"/runs/{result.runs[0].run_id}")
        page.see("Description", "48 clients (by_domain, alpha 0.5), 12 per round")
        page.click("button", "Show more")
        shown = "return [...document.images].some(i => i.src.includes('partition.png') && i.naturalWidth > 99)"
        page.until(lambda: driver.execute_script(shown), "the picture of the partition in the description")
        page.see("digits")  # the data set, as MLflow's input


def test_a_view_of_many_parameters_keeps_within_what_mlflow_takes():
    many = [f"train.optimizer.options.a_long_name_of_parameter_{i}" for i in range(60)]
    value = saved_view("p", "name", many, "personalized")
    assert 4500 < len(value) <= 5000
    columns = json.loads(json.loads(value)["state"])["selectedColumns"]
    assert f"params.`{many[0]}`" in columns
    assert f"params.`{many[-1]}`" not in columns
