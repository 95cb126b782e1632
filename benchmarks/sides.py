"""The processes of a side: started with packages of their own, told when it is their turn, measured, ended."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

HERE = Path(__file__).parent
PACKAGES = HERE / ".packages"
RIVALS = ("raysim", "plain_torch", "pfl_research", "flower", "fl_bench")
PATIENCE = 30.0  # seconds for a side's processes to end by themselves
ONE_PROCESS_PER_CORE = {"pfl_research"}  # started as torchrun does; the others start their workers themselves


class SideFailed(Exception):
    """A side ended or took too long; its message has the last lines that it printed."""


def packages_of(name: str) -> Path | None:
    """Where the packages of a side's requirements are, installed if they are not there yet; None where it needs none.

    Raises:
        SideFailed: pip can't install them.
    """
    requirements = HERE / "rivals" / name / "requirements.txt"
    if not requirements.is_file():
        return None
    # Named after what they were asked for: other requirements go to another folder.
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    target = PACKAGES / f"{name}-{digest}"
    if not target.is_dir():
        partial = target.with_suffix(".partial")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(partial), "-r"]
        done = subprocess.run([*command, str(requirements)], stdout=sys.stderr, check=False)
        if done.returncode:
            raise SideFailed(f"{name}: pip can't install {requirements}")
        partial.rename(target)
    return target


class Side:
    """A side's processes; a context manager that ends them.

    Args:
        task: folder of the task.
        log: what its processes print.
        limit: seconds for the start and for each round, after which it counts as hanging.

    Attributes:
        versions: of what it is made of.
    """

    def __init__(self, name: str, task: Path, log: Path, processes: int, limit: float) -> None:
        self.name, self.versions = name, dict[str, str]()
        self._log, self._limit = log, limit
        # In the task's folder, which has a short name: the path of a socket may have about 100 letters.
        address, key = str(task / name[:9]), secrets.token_hex(16)
        ranks = processes if name in ONE_PROCESS_PER_CORE else 1
        packages = packages_of(name)
        path = [*([str(packages)] if packages else []), str(HERE / "rivals" / name), str(HERE), str(HERE.parent)]
        environment = {
            **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
            "PYTHONPATH": os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "COMPARE_TASK": str(task),
            "COMPARE_ADDRESS": address,
            "COMPARE_KEY": key,
            "OMP_NUM_THREADS": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._listener = Listener(address, "AF_UNIX", backlog=ranks, authkey=bytes.fromhex(key))
        self._listener._listener._socket.settimeout(1)  # type: ignore[attr-defined]  # see _accept
        self._processes = [
            self._start(environment | (_as_torchrun(rank, ranks) if ranks > 1 else {"RANK": "0"}))
            for rank in range(ranks)
        ]
        self._connections: list[Connection] = []

    def wait_until_ready(self) -> None:
        """Raises: SideFailed."""
        accepted = [self._accept() for _ in self._processes]
        pids = {connection: self._receive(connection) for connection in accepted}
        order = [process.pid for process in self._processes]
        self._connections = sorted(accepted, key=lambda connection: order.index(pids[connection]))  # by rank
        self.versions, *_ = [self._receive(connection) for connection in self._connections]

    def round(self, round: int) -> float:
        """Do a round; returns the seconds it took.

        Raises: SideFailed.
        """
        begin = perf_counter()
        self._tell(round)
        for connection in self._connections:
            self._receive(connection)
        return perf_counter() - begin

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """The server's parameters after the last round.

        Raises: SideFailed.
        """
        self._tell(None)
        parameters: dict[str, NDArray[np.float32]]
        parameters, *_ = [self._receive(connection) for connection in self._connections]
        return parameters

    def cpu_seconds(self) -> float:
        """CPU time of all its processes so far, those of Ray included; of ended ones only what their parents keep."""
        return self._sum(lambda process: sum(process.cpu_times()[:2]))

    def private_mb(self) -> float:
        """Memory of all its processes, those of Ray included, without what they share."""
        return self._sum(lambda process: process.memory_full_info().uss) / 1e6

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all its processes; does nothing the second time."""
        tree = self._tree()
        for connection in self._connections:
            connection.close()
        deadline = monotonic() + PATIENCE
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for left in psutil.wait_procs(tree, 5)[1]:
            left.kill()
        self._listener.close()

    def _start(self, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        script = HERE / "rivals" / self.name / "run.py"
        with self._log.open("ab") as log:
            return subprocess.Popen([sys.executable, str(script)], env=environment, stdout=log, stderr=log)

    def _accept(self) -> Connection:
        deadline = monotonic() + self._limit
        while monotonic() < deadline:
            try:
                return self._listener.accept()
            except TimeoutError:  # a process that has ended never connects
                if any(process.poll() is not None for process in self._processes):
                    raise SideFailed(f"{self.name} ended before its first round:\n{self._last_lines()}") from None
        raise SideFailed(f"{self.name} was not ready after {self._limit:.0f} s:\n{self._last_lines()}")

    def _receive(self, connection: Connection) -> Any:
        try:
            if not connection.poll(self._limit):
                raise SideFailed(f"{self.name} did not answer within {self._limit:.0f} s:\n{self._last_lines()}")
            return connection.recv()
        except (EOFError, ConnectionError):
            raise SideFailed(f"{self.name} ended:\n{self._last_lines()}") from None

    def _tell(self, what: int | None) -> None:
        try:
            for connection in self._connections:
                connection.send(what)
        except ConnectionError:
            raise SideFailed(f"{self.name} ended:\n{self._last_lines()}") from None

    def _sum(self, figure: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for process in self._tree():
            with suppress(psutil.Error):  # one that has just ended
                total += figure(process)
        return total

    def _tree(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in self._processes:
            with suppress(psutil.Error):
                if process.poll() is None:
                    parent = psutil.Process(process.pid)
                    found += [parent, *parent.children(recursive=True)]
        return found

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:]) + f"\n(all of it: {self._log})"


def _as_torchrun(rank: int, ranks: int) -> dict[str, str]:
    """What torchrun would set for one machine."""
    port = str(20_000 + os.getpid() % 10_000)
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {"TORCHELASTIC_RUN_ID": "compare", "RANK": str(rank), "LOCAL_RANK": str(rank), **world}
