"""A real Ray cluster of several nodes on this machine, with an MLflow server and jobs, for ``test_job`` and ``test_link``.

Whatever a cluster started carries its name in its environment, wherever it was moved to since; that is how processes are
found, and how all of them, and nothing else, are killed at the end.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parent.parent.parent
MARK = "RAYSIM_TEST_CLUSTER"
WORKER_PORTS = 30  # per node: its workers, the command's process and the drivers
POLL_SECONDS = 0.1
RAY = (sys.executable, "-m", "ray.scripts.scripts")

T = TypeVar("T")


def steps(uri: str, experiment: str) -> dict[str, list[int]]:
    """What is logged so far, by name of the run: the steps of a metric, each as often as it is there."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    runs = [run for run in runs if "mlflow.parentRunId" in run.data.tags or len(runs) == 1]
    return {r.info.run_name: [m.step for m in client.get_metric_history(r.info.run_id, "train/loss")] for r in runs}


def until(condition: Callable[[], T], seconds: float, what: str, alive: subprocess.Popen[bytes] | None = None) -> T:
    """Wait until a condition holds and return its value; fails after so many seconds, or when ``alive`` has ended."""
    start = time.monotonic()
    while True:
        ended = alive is not None and alive.poll() is not None
        if value := condition():
            print(f"{time.monotonic() - start:5.1f} s until {what}")
            return value
        assert not ended, f"the process ended, with {alive.returncode if alive else 0}, before {what}"
        assert time.monotonic() - start < seconds, f"not within {seconds:g} seconds: {what}"
        time.sleep(POLL_SECONDS)


def free_ports(count: int) -> range:
    """So many ports in a row that nobody uses, below those that the system hands out by itself."""
    for _ in range(200):
        first = random.randrange(20000, 32000 - count)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return range(first, first + count)
    raise AssertionError(f"no {count} free ports in a row")


@dataclass(frozen=True)
class Host:
    """Where a node runs: its address, and what is put before a command to run it there."""

    address: str = "127.0.0.1"
    prefix: Sequence[str] = ()


@dataclass
class Cluster:
    """Used in a ``with`` statement, whose end removes everything; on a failure the logs are printed first.

    Token authentication is on, with a token of its own: whether the machine has a token, or none, makes no difference.

    Attributes:
        head: where the head node, the MLflow server and the jobs run.
        system_config: of Ray, set on the head for all nodes.
        folder: everything on disk, under a short path, since the path of a unix socket has at most 107 characters.
        environment: of every process that is started.
    """

    head: Host = field(default_factory=Host)
    system_config: dict[str, Any] = field(default_factory=dict)
    folder: Path = field(init=False)
    environment: dict[str, str] = field(init=False)
    mlflow: str = field(init=False)
    dashboard: str = field(init=False)
    _gcs: str = field(init=False)
    _server: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
        self.name = self.folder.name
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        ours = ("RAY_", "MLFLOW_", "RAYSIM_")  # of the machine's owner: none of them may decide anything here
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        self.environment = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "SPT_NOENV": "1",  # a process that gives itself a title keeps its environment readable
            "CUDA_VISIBLE_DEVICES": "",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAYSIM_HOME": str(self.folder / "home"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._print_logs()
        finally:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    # Starting.

    def start_head(self, cpus: int) -> None:
        ports = free_ports(3)
        self._gcs, self.dashboard = f"{self.head.address}:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        options = [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}"]
        options += ["--head", "--dashboard-host=127.0.0.1"]
        if self.system_config:
            options.append(f"--system-config={json.dumps(self.system_config)}")
        self._start_node("head", self.head, cpus, options)

    def start_node(self, name: str, cpus: int, host: Host | None = None) -> None:
        self._start_node(name, host or self.head, cpus, [f"--address={self._gcs}"])

    def _start_node(self, name: str, host: Host, cpus: int, options: list[str]) -> None:
        ports = free_ports(6 + WORKER_PORTS)
        kinds = ("node-manager", "object-manager", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
        for kind, port in zip((*kinds, "runtime-env-agent"), ports[:6], strict=True):
            options.append(f"--{kind}-port={port}")
        options += [f"--min-worker-port={ports[6]}", f"--max-worker-port={ports[-1]}", f"--num-cpus={cpus}"]
        options += [f"--temp-dir={self.folder / name}", f"--node-ip-address={host.address}", "--num-gpus=0"]
        options += ["--object-store-memory=200000000", "--disable-usage-stats"]
        started = self.popen(name, [*RAY, "start", *options], host)
        until(lambda: started.poll() is not None, 60, f"`ray start` of the node {name!r}")
        assert started.returncode == 0, f"`ray start` of the node {name!r} failed"

    def start_mlflow(self) -> None:
        """On the head's host, with a SQLite store; not waited for, since it takes longer than Ray."""
        port = free_ports(1)[0]
        self.mlflow = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        command += [f"--backend-store-uri={self.store}", f"--artifacts-destination={self.folder / 'artifacts'}"]
        self._server = self.popen("mlflow", command, self.head)

    def wait_for_mlflow(self) -> None:
        probe = f"import urllib.request as r; r.urlopen('{self.mlflow}/health', timeout=2)"
        command = [sys.executable, "-c", probe]
        until(lambda: self.run(command).returncode == 0, 60, "the MLflow server answers", alive=self._server)

    @property
    def store(self) -> str:
        """What the MLflow server writes to; can be read from any host."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def submit(self, working_dir: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """``ray job submit``, which follows the job's log into ``job.log`` and ends with the job."""
        variables = json.dumps({"env_vars": {"MLFLOW_TRACKING_URI": self.mlflow}})
        submit = [*RAY, "job", "submit", f"--address={self.dashboard}", f"--working-dir={working_dir}"]
        return self.popen("job", [*submit, f"--runtime-env-json={variables}", "--", *command], self.head)

    def popen(self, name: str, command: Sequence[str], host: Host) -> subprocess.Popen[bytes]:
        """Start a process that belongs to the cluster; its output goes to a file."""
        environment = {**self.environment, MARK: f"{self.name}/{name}"}
        with (self.folder / f"{name}.log").open("ab") as output:
            return subprocess.Popen(
                [*host.prefix, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a short command on the head's host."""
        environment = {**self.environment, MARK: f"{self.name}/command"}
        return subprocess.run(
            [*self.head.prefix, *command], env=environment, capture_output=True, text=True, timeout=60
        )

    # Looking.

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def processes(self, node: str | None = None, title: str = "") -> list[psutil.Process]:
        """What belongs to the cluster, or to one of its nodes, and has such a title."""
        found = []
        for process in psutil.process_iter():
            try:
                mark = process.environ().get(MARK, "")
                if mark != f"{self.name}/{node}" and (node or not mark.startswith(f"{self.name}/")):
                    continue
                if process.status() != psutil.STATUS_ZOMBIE and " ".join(process.cmdline()).startswith(title):
                    found.append(process)
            except psutil.Error:
                continue  # it has just ended, or is another user's
        return found

    def client_actors(self, node: str | None = None) -> set[int]:
        """The process ids of the client actors."""
        return {process.pid for process in self.processes(node, "ray::ClientActor")}

    def nodes_alive(self) -> int:
        """As Ray counts them."""
        code = (
            f"import ray; ray.init('{self._gcs}', log_to_driver=False)\n"
            "print(f'alive={sum(node[\"Alive\"] for node in ray.nodes())};')"
        )
        answer = self.run([sys.executable, "-c", code])
        found = re.search(r"alive=(\d+);", answer.stdout)
        assert found, answer.stdout + answer.stderr
        return int(found[1])

    def status_without_token(self, path: str) -> int:
        """The HTTP status of Ray's dashboard for someone without a token; the head must be on this host."""
        try:
            with urllib.request.urlopen(f"{self.dashboard}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def _print_logs(self) -> None:
        logs = [*self.folder.glob("*.log"), *self.folder.glob("*/session_latest/logs/raylet.out")]
        for log in sorted([*logs, *self.folder.glob("*/session_latest/logs/gcs_server.out")]):
            lines = log.read_text(errors="replace").splitlines()
            print(f"\n{log} (the last of {len(lines)} lines):", *lines[-40:], sep="\n")

    # Ending.

    def kill(self, node: str | None = None) -> None:
        """End all processes of a node, or of the cluster, at once, and what they start meanwhile."""
        deadline = time.monotonic() + 20
        while found := self.processes(node):
            assert time.monotonic() < deadline, f"could not be killed: {found}"
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found, timeout=2)
