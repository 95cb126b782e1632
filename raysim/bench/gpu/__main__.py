"""The command: runs the steps one after another and prints a Markdown table; what fails is said, and the rest goes on."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raysim.bench.gpu.tables import markdown

# The steps, and the share of the time that each may take; what one leaves, the next may use. `steps.py` has what they do.
SHARES = {
    "correctness": 1.0,
    "methods": 1.5,
    "actors": 1.5,
    "large": 1.5,
    "small": 1.0,
    "memory": 1.0,
    "launches": 0.7,
    "paper": 1.5,
}
START_SECONDS = 20.0  # that a process may take until torch and timm are there, beyond its share


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m raysim.bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together (default: 9)")
    parser.add_argument("--json", type=Path, help="write every figure to this file, after every step")
    parser.add_argument("--steps", default=",".join(SHARES), help="a part of them, separated by commas")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a rehearsal: its figures mean nothing")
    asked = parser.parse_args(arguments)
    names = asked.steps.split(",")
    if unknown := [name for name in names if name not in SHARES]:
        parser.error(f"--steps: there is no step {unknown[0]!r}; there are {', '.join(SHARES)}")
    end = time.monotonic() + 60 * asked.minutes
    found: dict[str, Any] = {}
    for i, name in enumerate(names):
        share = SHARES[name] / sum(SHARES[later] for later in names[i:])
        seconds = max(5.0, share * (end - time.monotonic()))
        print(f"{name}: up to {seconds:.0f} s", file=sys.stderr, flush=True)
        found[name] = run_step(name, asked.device, asked.tiny, seconds)
        if asked.json is not None:
            asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))
    return 1 if any(step["failure"] for step in found.values()) else 0


def run_step(name: str, device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """One step in its own process: its rows, how long it took, and why it failed ("" if it did not)."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows, errors = Path(folder, "rows"), Path(folder, "errors")
        rows.touch()
        command = [
            sys.executable,
            "-m",
            "raysim.bench.gpu.steps",
            name,
            device,
            str(int(tiny)),
            str(seconds),
            str(rows),
        ]
        with errors.open("w") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream)
            try:
                code: int | None = process.wait(seconds + START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = None
        written = [json.loads(line) for line in rows.read_text().splitlines()]
        said = "\n".join(errors.read_text().splitlines()[-12:])
        failure = ""
        if code is None:
            failure = f"not done after {seconds + START_SECONDS:.0f} s\n{said}".strip()
        elif code:
            failure = said or f"ended with code {code}"
    return {"rows": written, "seconds": round(time.monotonic() - start, 1), "failure": failure}


if __name__ == "__main__":
    sys.exit(main())
