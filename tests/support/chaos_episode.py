"""One run of the fault injection, and the command that takes it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from chaos_world import World, kill_group
from configs import TINY

SUPPORT = Path(__file__).parent
PATH = os.pathsep.join([str(SUPPORT), str(SUPPORT.parent.parent)])
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "personal head": {"algorithm": {"name": "troubled:Troubled", "pause": 0.1}, "evaluate": {"every": 2}},
    "scaffold": {
        "algorithm": {"name": "troubled:TroubledScaffold", "pause": 0.1},
        "evaluate": {"protocol": "aggregated"},
    },
    "participants": {
        "algorithm": {"name": "troubled:Troubled", "pause": 0.1},
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


class Episode:
    """One run and what befalls it."""

    def __init__(self, world: World, name: str, local: bool, rounds: int, pause: float | None = None) -> None:
        self.world, self.name, self.local, self.rounds = world, name, local, rounds
        self.folder = Path(tempfile.mkdtemp(dir=world.folder, prefix="run-"))
        self.on_small_disk = not local and world.small_disk is not None
        self.checkpoints = world.small_disk if not local and world.small_disk else self.folder / "checkpoints"
        config = configuration(name, rounds, name=f"{name} {self.folder.name}")
        config["checkpoint"] = {**config["checkpoint"], "dir": str(self.checkpoints)}
        config["tracking"] = {"uri": world.mlflow.uri}
        self.trouble = self.folder / "trouble"
        self.trouble.mkdir()
        config["algorithm"] = {**config["algorithm"], "trouble": str(self.trouble)}
        if pause is not None:
            config["algorithm"]["pause"] = pause
        if local:
            config["resources"]["num_actors"] = 2  # as many as a round has client batches
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
            environment["RAY_ADDRESS"] = self.world.nodes.address
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

    def ended(self) -> bool:
        """Whether the command has."""
        assert self.command is not None
        return self.command.poll() is not None

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

    def put_trouble(self, kind: str, seconds: float = 0.0) -> bool:
        """Trouble in the way of the next actor that comes along (``troubled.py``); False if the last one still lies there."""
        if (self.trouble / kind).exists():
            return False
        (self.trouble / "new").write_text(str(seconds))
        (self.trouble / "new").rename(self.trouble / kind)
        return True

    def troubles(self) -> list[str]:
        """The kinds that actors ran into."""
        return [path.name.partition(" ")[0] for path in self.trouble.glob("* taken *")]

    def text(self) -> str:
        return (self.folder / "log").read_text()
