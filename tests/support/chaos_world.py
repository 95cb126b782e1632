"""What the runs of the fault injection need, each of which can be taken away: an MLflow server, nodes, a disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil


class MlflowServer:
    """A tracking server of our own that can be taken away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._returning: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        artifacts = ["--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts"]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *where],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers, 90, "the MLflow server", lambda: (self.folder / "log").read_text()[-2000:])

    def answers(self) -> bool:
        import urllib.request

        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200
        return False

    def kill(self) -> None:
        kill_group(self._process)

    def away(self) -> bool:
        return self._returning is not None and self._returning.is_alive()

    def come_back(self, seconds: float) -> None:
        """Start again in so many seconds, while other things happen."""

        def later() -> None:
            time.sleep(seconds)
            self.start()

        self._returning = threading.Thread(target=later)
        self._returning.start()

    def settle(self) -> None:
        if self._returning is not None:
            self._returning.join()
            self._returning = None


class Nodes:
    """A Ray cluster of three nodes on this machine, one of which may be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        args = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=args)
        self.address = self._cluster.address
        self._third = self._cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        self.other: Any = None
        self.add()

    def add(self) -> None:
        self.other = self._cluster.add_node(num_cpus=2, object_store_memory=100 * 2**20)

    def lose(self) -> None:
        self._cluster.remove_node(self.other, allow_graceful=False)
        self.other = None

    def processes(self, name: str) -> list[psutil.Process]:
        """Worker processes of this cluster whose title starts with ``ray::`` and a name."""
        found = []
        for node in (self._cluster.head_node, self._third, self.other):
            for info in node.all_processes["raylet"] if node is not None else ():
                with contextlib.suppress(psutil.Error):
                    for process in psutil.Process(info.process.pid).children(recursive=True):
                        with contextlib.suppress(psutil.Error):
                            if any(part.startswith(f"ray::{name}") for part in process.cmdline()):
                                found.append(process)
        return found

    def close(self) -> None:
        self._cluster.shutdown()


class World:
    """All of it, in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rs-chaos-"))
        self.mlflow = MlflowServer(self.folder / "mlflow")
        self.nodes = Nodes()
        self.small_disk = small_disk(self.folder / "disk")

    def close(self) -> None:
        self.nodes.close()
        self.mlflow.settle()
        self.mlflow.kill()
        if self.small_disk is not None:
            subprocess.run(["umount", "-l", str(self.small_disk)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The small disk has no byte left, for a while."""
        assert self.small_disk is not None
        filler = self.small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        yield
        filler.unlink()


def small_disk(folder: Path) -> Path | None:
    """A file system of a few megabytes, where we may make one."""
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        return None
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    return folder if done.returncode == 0 else None


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(condition: Callable[[], bool], seconds: float, what: str, log: Callable[[], str] = str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come within {seconds} seconds: {log()}"
        time.sleep(0.2)
