"""The command as a process of its own, which a test may kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

TESTS = Path(__file__).parent.parent


def start_command(folder: Path, *arguments: str, env: Iterable[tuple[str, str]] = ()) -> subprocess.Popen[bytes]:
    """``raysim`` in a folder, in a process group of its own, on a Ray of its own; its output goes into the file ``log``."""
    path = os.pathsep.join([str(TESTS / "support"), str(TESTS.parent)])
    return subprocess.Popen(
        [sys.executable, "-m", "raysim", *arguments],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, "PYTHONPATH": path, **dict(env)},
        stdout=(folder / "log").open("a"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
