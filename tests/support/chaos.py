"""Fault injection: runs that are killed, hung, cut off and starved must end with the bits of one that is not.

    python tests/support/chaos.py --minutes 20 --seed 7

Every run goes on until it is finished. Then its checksums are compared with those of an undisturbed run of the same
configuration, and its metrics in MLflow must have every round once. The moments and the kinds of faults follow from the
seed; what they hit depends on how fast the machine is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from raysim.storage.checkpoint import manifest_name, rounds_in
from raysim.storage.folder import Folder

from configs import TINY

SUPPORT = Path(__file__).parent
PATH = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent.parent)])
ROUNDS = 20
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "personal head": {"algorithm": {"name": "methods:Slow", "pause": 0.1}, "evaluate": {"every": 2}},
    "scaffold": {"algorithm": {"name": "methods:SlowScaffold", "pause": 0.1}, "evaluate": {"protocol": "aggregated"}},
    "participants": {
        "algorithm": {"name": "methods:Slow", "pause": 0.1},
        "cohort": {"fraction": 1.0, "dropout": 0.2, "stragglers": 0.4},
        "train": {"optimizer": {"name": "adamw", "lr": 0.005}},
    },
}
RUN_SECONDS = 240  # for a disturbed run, after which it counts as hung


def configuration(of: str, rounds: int, **changes: Any) -> dict[str, Any]:
    """A file for ``raysim run``."""
    resources = {"num_actors": 3, "clients_per_batch": 2, "client_timeout": 6.0, "max_retries": 20}
    checkpoint = {"every": 2}
    return {
        **TINY,
        "rounds": rounds,
        "resources": resources,
        "checkpoint": checkpoint,
        **CONFIGURATIONS[of],
        **changes,
    }


@dataclass
class Tally:
    """What was done and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    finished: int = 0
    mismatches: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> str:
        return json.dumps({**self.__dict__, "faults": dict(sorted(self.faults.items()))}, indent=1)


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


class Episode:
    """One run and what befalls it."""

    def __init__(self, harness: Harness, name: str, local: bool) -> None:
        self.harness, self.name, self.local = harness, name, local
        self.folder = Path(tempfile.mkdtemp(dir=harness.folder, prefix="run-"))
        self.checkpoints = harness.small_disk if not local and harness.small_disk else self.folder / "checkpoints"
        config = configuration(name, harness.rounds, name=f"{name} {self.folder.name}")
        config["checkpoint"] = {**config["checkpoint"], "dir": str(self.checkpoints)}
        config["tracking"] = {"uri": harness.mlflow.uri}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config))
        self.experiment = config["name"]
        self.log = (self.folder / "log").open("w")
        self.command: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": PATH,
            "RAYSIM_HOME": str(self.folder),
        }
        environment.pop("RAY_ADDRESS", None)
        if not self.local:
            environment["RAY_ADDRESS"] = self.harness.nodes.address
        self.command = subprocess.Popen(
            [sys.executable, "-m", "raysim", *arguments],
            cwd=self.folder,
            env=environment,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def home(self) -> str | None:
        """The folder of the run's checkpoints."""
        found = sorted(self.checkpoints.glob("*/study.json")) if self.checkpoints.exists() else []
        own = [path for path in found if json.loads(path.read_text())["experiment"] == self.experiment]
        return str(own[-1].parent) if own else None

    def rounds_done(self) -> int:
        """By the journal of the run."""
        home = self.home()
        journals = list((Path(home) / "journal").glob("*.jsonl")) if home else []
        return sum(len(path.read_text().splitlines()) for path in journals)

    def killed_group(self) -> None:
        """The command and its whole process group, as when a machine goes down; on a local cluster Ray goes with it."""
        assert self.command is not None
        kill_group(self.command)

    def go_on(self) -> None:
        """What a user would do after that."""
        home = self.home()
        if home is None:
            self.start("run", "run.yaml")
        elif self.local:
            self.start("resume", home)
        else:
            self.start("attach", home)

    def finish(self) -> int:
        """Wait for the end; the command's exit code."""
        assert self.command is not None
        until = time.monotonic() + RUN_SECONDS
        while self.command.poll() is None:
            if time.monotonic() > until:
                kill_group(self.command)
                return -1
            time.sleep(0.2)
        return self.command.returncode

    def text(self) -> str:
        return (self.folder / "log").read_text()


class Harness:
    """Takes runs through faults.

    Args:
        seed: of kinds and moments.
        say: told what happens.
        rounds: of each run.
    """

    def __init__(self, seed: int, say: Callable[[str], None] = print, rounds: int = ROUNDS) -> None:
        self.random, self.say, self.tally, self.rounds = random.Random(seed), say, Tally(), rounds
        self.folder = Path(tempfile.mkdtemp(prefix="rs-chaos-"))
        self.mlflow = MlflowServer(self.folder / "mlflow")
        self.nodes = Nodes()
        self.small_disk = small_disk(self.folder / "disk")
        self.expected: dict[str, dict[str, str]] = {}

    def close(self) -> None:
        self.nodes.close()
        self.mlflow.settle()
        self.mlflow.kill()
        if self.small_disk is not None:
            subprocess.run(["umount", "-l", str(self.small_disk)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run_until(self, seconds: float, faults_per_run: int, kinds: list[str] | None = None) -> Tally:
        """Runs until the time is over; the last one is taken to its end."""
        begun = time.monotonic()
        for i in range(10**6):
            if time.monotonic() - begun > seconds:
                break
            name = [*CONFIGURATIONS][i % len(CONFIGURATIONS)]
            self.undisturbed(name)
            self.episode(name, local=i % 4 == 3, faults=faults_per_run, kinds=kinds)
            self.tally.seconds = time.monotonic() - begun
            self.say(
                f"[{self.tally.seconds:6.0f} s] {self.tally.runs} runs, {sum(self.tally.faults.values())} faults, "
                f"{len(self.tally.mismatches)} mismatches"
            )
        return self.tally

    def undisturbed(self, name: str) -> None:
        """What a configuration comes to when nothing happens."""
        if name in self.expected:
            return
        episode = Episode(self, name, local=True)
        episode.start("run", "run.yaml")
        assert episode.finish() == 0, episode.text()
        self.expected[name], problems = self.outcome(episode)
        assert not problems, problems

    def episode(self, name: str, local: bool, faults: int, kinds: list[str] | None, order: Sequence[str] = ()) -> None:
        """A run with at most so many faults, of these kinds; or with one of each kind in ``order``."""
        episode = Episode(self, name, local)
        self.say(f"{name}, {'a local cluster' if local else 'three nodes'}")
        if self.nodes.other is None:
            self.nodes.add()
        episode.start("run", "run.yaml")
        for i in range(faults):
            if not self.progressed(episode):
                break
            if order:
                self.fault(episode, [order[i]])
                continue
            for _ in range(self.random.choice([1, 2, 3])):  # those that hit who is just recovering are the hard ones
                time.sleep(self.random.uniform(0.0, 1.5))
                self.fault(episode, kinds)
        code = episode.finish()
        self.mlflow.settle()
        self.tally.runs += 1
        checksums, problems = self.outcome(episode)
        if code != 0:
            problems.append(f"exit code {code}")
        if checksums != self.expected[name]:
            problems.append(f"checksums {checksums} instead of {self.expected[name]}")
        if problems:
            self.tally.mismatches.append(f"{name}: {'; '.join(problems)}")
            self.say(f"MISMATCH {problems}\n{episode.text()[-6000:]}")
        else:
            self.tally.finished += 1
        self.clean(episode)

    def fault(self, episode: Episode, kinds: list[str] | None) -> None:
        possible = LOCAL_FAULTS if episode.local else CLUSTER_FAULTS
        kind = self.random.choice([k for k in possible if kinds is None or k in kinds] or possible)
        if getattr(self, kind)(episode):
            self.tally.faults["machine_killed" if episode.local and kind == "command_killed" else kind] += 1
            self.say(f"  after round {episode.rounds_done()}: {kind}")

    def progressed(self, episode: Episode) -> bool:
        """Wait until the run has done another round or two, so that a fault hits it and not its start; False at its end."""
        before, until = episode.rounds_done(), time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            assert episode.command is not None
            if episode.command.poll() is not None or episode.rounds_done() >= self.rounds:
                return False
            if episode.rounds_done() > before:
                return True
            time.sleep(0.05)
        return False

    def outcome(self, episode: Episode) -> tuple[dict[str, str], list[str]]:
        """The checksums that MLflow has, and what is wrong with the metrics there."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self.mlflow.uri)
        experiment = client.get_experiment_by_name(episode.experiment)
        if experiment is None:
            return {}, ["no experiment in MLflow"]
        runs = client.search_runs([experiment.experiment_id])
        if len(runs) != 1:
            return {}, [f"{len(runs)} runs in MLflow"]
        run, problems = runs[0], []
        if run.info.status != "FINISHED":
            problems.append(f"it is {run.info.status}")
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            of_clients = metric.startswith(("personalized/", "aggregated/", "difference/"))
            every = range(1, self.rounds, 2) if of_clients and "head" in episode.name else range(self.rounds)
            if sorted(steps) != list(every):
                problems.append(f"{metric} has steps {sorted(steps)}")
        return {k: v for k, v in run.data.tags.items() if k.startswith("checksum.")}, problems

    def clean(self, episode: Episode) -> None:
        home = episode.home()
        if home is not None and not episode.local:
            shutil.rmtree(home, ignore_errors=True)

    # Faults; each returns whether it found something to hit.

    def _signal(self, name: str, number: int) -> bool:
        processes = self.nodes.processes(name)
        if not processes:
            return False
        with contextlib.suppress(psutil.Error):
            self.random.choice(sorted(processes, key=lambda p: p.pid)).send_signal(number)
            return True
        return False

    def actor_killed(self, episode: Episode) -> bool:
        return self._signal("ClientActor", signal.SIGKILL)

    def actor_hangs(self, episode: Episode) -> bool:
        return self._signal("ClientActor", signal.SIGSTOP)

    def driver_killed(self, episode: Episode) -> bool:
        return self._signal("Driver", signal.SIGKILL)

    def node_lost(self, episode: Episode) -> bool:
        if self.nodes.other is None:
            return False
        self.nodes.lose()
        return True

    def node_joins(self, episode: Episode) -> bool:
        if self.nodes.other is not None:
            return False
        self.nodes.add()
        return True

    def command_killed(self, episode: Episode) -> bool:
        episode.killed_group()
        if episode.local:
            time.sleep(self.random.uniform(0.0, 1.0))
        episode.go_on()
        return True

    def mlflow_down(self, episode: Episode) -> bool:
        if self.mlflow.away():
            return False
        self.mlflow.kill()
        self.mlflow.come_back(self.random.uniform(2.0, 15.0))
        return True

    def disk_full(self, episode: Episode) -> bool:
        if self.small_disk is None:
            return False
        filler = self.small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        time.sleep(self.random.uniform(1.0, 4.0))
        filler.unlink()
        return True

    def checkpoint_damaged(self, episode: Episode) -> bool:
        """Flip bits of the newest one and kill the driver, which must notice and take the one before."""
        home = episode.home()
        places = [p for p in Path(home).iterdir() if p.is_dir() and p.name != "journal"] if home else []
        rounds = [(place, round) for place in places for round in rounds_in(Folder(str(place)))]
        if not rounds:
            return False
        place, round = max(rounds, key=lambda row: row[1])
        with contextlib.suppress(OSError, ValueError, KeyError):
            body = json.loads((place / manifest_name(round)).read_text())["manifest"]
            path = place / self.random.choice([body["shared"], *body["states"], *body["rounds"]])["name"]
            data = bytearray(path.read_bytes())
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            path.write_bytes(data)
            return self.driver_killed(episode)
        return False


CLUSTER_FAULTS = [
    *("actor_killed", "actor_killed", "actor_hangs", "driver_killed", "node_lost", "node_joins", "node_joins"),
    *("command_killed", "mlflow_down", "disk_full", "checkpoint_damaged"),
]
LOCAL_FAULTS = ["command_killed", "command_killed", "mlflow_down"]


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


@contextlib.contextmanager
def harness(seed: int, say: Callable[[str], None] = print, rounds: int = ROUNDS) -> Iterator[Harness]:
    made = Harness(seed, say, rounds)
    try:
        yield made
    finally:
        made.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=14, help="in a run, at most")
    parser.add_argument("--kinds", nargs="*", help=f"of {', '.join(sorted({*CLUSTER_FAULTS, *LOCAL_FAULTS}))}")
    given = parser.parse_args()
    with harness(given.seed, lambda line: print(line, flush=True)) as made:
        tally = made.run_until(60 * given.minutes, given.faults, given.kinds)
    print(tally.as_json())
    sys.exit(bool(tally.mismatches))


if __name__ == "__main__":
    main()
