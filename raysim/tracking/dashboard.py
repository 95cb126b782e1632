"""``raysim dashboard``: MLflow's own pages on the right store, opened at the comparison of a study.

The comparison is a saved view of the experiment, which MLflow keeps as a tag: its runs with their accuracy over rounds, the
parameters in which they differ as columns and as parallel coordinates. It is written when a study starts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raysim.errors import ConfigError
from raysim.tracking.tags import ENTRY_TAG
from raysim.views import FAMILIES, MODELS, Model

VIEW = "raysim"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
MEANS_TAG = f"{VIEW_TAG}-means"
"""The same view with a line for the mean over the seeds of an entry, and a band from the least to the most."""
MOST_LETTERS = 5000
"""Of a view: MLflow refuses a longer tag of an experiment."""
START_SECONDS = 60
LINE = {
    "range": {},
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "selectedXAxisMetricKey": "",
    "ignoreOutliers": False,
}
LINE |= {"scaleType": "linear", "xAxisScaleType": "linear", "lineSmoothness": 0}
LINE |= {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}


def _charts(model: Model) -> dict[str, str]:
    """Titles of the charts over rounds, by metric: the headline first, then the other family."""
    families = [model, *(family for family in FAMILIES if family != model)]
    charts = {f"{family}/accuracy_mean": f"accuracy {MODELS[family]}, mean over clients" for family in families}
    charts[f"{model}/accuracy_worst_decile"] = f"accuracy {MODELS[model]}, worst decile of clients"
    return charts | {f"{model}/auc_mean": f"AUC {MODELS[model]}, mean over clients", "train/loss": "training loss"}


def saved_view(parent: str, name: str, differing: Sequence[str], model: Model, means: bool = False) -> str:
    """The value of ``VIEW_TAG`` for a study, or of ``MEANS_TAG``: JSON as MLflow's page writes it.

    Args:
        parent: run id of the study.
        name: of the view, in MLflow's menu of views.
        differing: parameters in which the study's runs differ; as many of them are shown as there is room for.
        model: that the headline is about.
    """
    charts, accuracy = _charts(model), f"{model}/accuracy_mean"
    columns = [key for key in charts if key != "train/loss"]
    now = int(time.time() * 1000)
    sections = [{"uuid": f"{VIEW}-{key}", "name": title, "display": True} for key, title in _SECTIONS.items()]
    shared = {"deleted": False, "isGenerated": False, "runsCountToCompare": 20}
    lines = [
        {
            "type": "LINE",
            "uuid": f"{VIEW}-{i}",
            "metricSectionId": f"{VIEW}-rounds",
            "metricKey": key,
            "xAxisKey": "step",
        }
        | {"selectedMetricKeys": [key], "displayName": title, **LINE, **shared}
        for i, (key, title) in enumerate(charts.items())
    ]
    bars = {"type": "BAR", "uuid": f"{VIEW}-bar", "metricSectionId": f"{VIEW}-end", "metricKey": accuracy}
    parallel = {"type": "PARALLEL", "uuid": f"{VIEW}-parallel", "metricSectionId": f"{VIEW}-end", "showAllRuns": False}
    parallel |= {"selectedParams": list(differing[:6]), "selectedMetrics": [accuracy]}
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent}'",
        # Sorted by anything else than time, MLflow lists the runs of a study without their parent.
        "orderByKey": f"metrics.`{accuracy}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"params.`{key}`" for key in ("seed", *differing)),
            *(f"metrics.`{key}`" for key in columns),
        ],
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [*lines, bars | shared, *([parallel | shared] if differing else [])],
        "compareRunSections": [s | {"isReordered": True, "deleted": False, "isGenerated": False} for s in sections],
        "isAccordionReordered": True,  # else the sections are sorted by name, MLflow's own among them
        "hideEmptyCharts": True,
    }
    if means:  # in colours that MLflow chooses for groups
        groups = [{"mode": "tag", "groupByData": ENTRY_TAG}]
        state |= {"groupBy": {"aggregateFunction": "average", "groupByKeys": groups}, "useGroupedValuesInCharts": True}
    view = json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})
    fits = len(view) <= MOST_LETTERS or not differing
    return view if fits else saved_view(parent, name, differing[:-1], model, means)


_SECTIONS = {"rounds": "over rounds", "end": "after the last round"}


def open_dashboard(
    uri: str, page: str, port: int | None, host: str, browser: bool, notify: Callable[[str], None]
) -> None:
    """Serve a store until Ctrl-C, and open a page of it; if the store is already a server, only open the page.

    Raises:
        ConfigError: the server does not start.
    """
    if uri.startswith(("http://", "https://")):
        _show(f"{uri.rstrip('/')}/{page}", browser, notify)
        return
    port = _free_port(host, port)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", host]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # half the memory
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:////") else Path.cwd()
    with subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches only this process, which ends the server
    ) as server:
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        address = f"http://{shown}:{port}"
        try:
            _wait(server, address)
            _show(f"{address}/{page}", browser, notify)
            notify("press Ctrl-C to end it")
            for _ in server.stdout or ():
                pass  # its log of requests; read, so that it never waits
            raise ConfigError(f"the MLflow server ended by itself, with exit status {server.wait()}")
        except KeyboardInterrupt:
            notify("ended")
        finally:
            _end(server)


def _wait(server: subprocess.Popen[str], address: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        if server.poll() is not None:
            assert server.stdout is not None
            words = server.stdout.read()[-1500:].strip()
            raise ConfigError(f"the MLflow server does not start (exit status {server.returncode}):\n{words}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise ConfigError(f"the MLflow server does not answer at {address}") from None
            time.sleep(0.2)


def _end(server: subprocess.Popen[str]) -> None:
    """End the server, and the worker that it started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _show(address: str, browser: bool, notify: Callable[[str], None]) -> None:
    notify(f"dashboard: {address}")
    if browser and not webbrowser.open(address):
        notify("no browser was found here; open the address in yours")


def _free_port(host: str, asked: int | None) -> int:
    """A free port: the requested one, or any.

    Raises:
        ConfigError: it is taken, or this machine has no such address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, asked or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended left it waiting
            one.bind(address)
            port: int = one.getsockname()[1]
            return port
    except OSError as error:
        where = "--host" if asked is None else f"--port {asked}, --host"
        raise ConfigError(f"{where} {host}: {error.strerror or error}") from error


def page_of(experiment: Any, view: bool) -> str:
    """The path of an experiment's page: its saved view as charts, or the list of its runs."""
    if not view:
        return f"#/experiments/{experiment}/runs"
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&compareRunsMode=CHART"
