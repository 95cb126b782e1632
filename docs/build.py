"""Run the commands of README.md and docs/getting_started.md as they stand there, and draw the pictures of the docs.

    python docs/build.py            all of it, in two minutes; writes docs/images/
    python docs/build.py --check    only the commands

Pictures of the dashboard need chromium and chromedriver.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
IMAGES = ROOT / "docs" / "images"
PAGES = ("README.md", "docs/getting_started.md")
# Commands that set up the environment in which this script runs, that wait for a person, or are elsewhere: CI runs the first
# two, the others have tests of their own (tests/tracking, tests/end_to_end, tests/bench).
ELSEWHERE = re.compile(r"pip install|raysim (dashboard|attach|resume|bench)|ray job|pytest|eval ")


def commands(page: str) -> list[str]:
    """The command lines of a page: those of its blocks without a language that start as a command does."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [part.partition("  #")[0].strip() for block in blocks for part in block.replace(" && ", "\n").splitlines()]
    return [line for line in lines if re.match(r"(raysim|pip|python|ray|pytest|eval) ", line)]


def run(command: str, folder: Path, seen: dict[str, str]) -> None:
    """A command in a folder; ``RUN_ID`` stands for the id of a run that an earlier one printed."""
    if command in seen:
        return
    print(f"$ {command}", flush=True)
    program, *arguments = [run_id(folder) if word == "RUN_ID" else word for word in command.split()]
    prefix = [sys.executable, "-m", "raysim"] if program == "raysim" else [program]
    done = subprocess.run([*prefix, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    seen[command] = done.stdout


def run_id(folder: Path) -> str:
    """FedPerfix's first run."""
    from raysim.tracking.mlflow_reader import FinishedRuns

    history = FinishedRuns(f"sqlite:///{folder}/mlflow.db", "quickstart").latest_study()
    return str(history.loc[history["name"] == "fedperfix", "run_id"].iloc[0])


def check(folder: Path, done: dict[str, str] | None = None) -> dict[str, str]:
    """All commands that are not ``done``, in a folder that has what the repository has; returns their outputs."""
    for name in ("yaml", "docs", "algorithms"):
        (folder / name).symlink_to(ROOT / name)
    seen = dict(done or {})
    for page in PAGES:
        for command in commands(page):
            if not ELSEWHERE.search(command):
                run(command, folder, seen)
    return seen


def draw(folder: Path) -> None:
    """The pictures of the docs, from the store that the commands filled."""
    seen: dict[str, str] = {}
    run("raysim compare quickstart --plots pictures", folder, seen)
    for name in ("comparison", "clients", "who_gains_over_local"):
        shutil.copy(folder / "pictures" / f"{name}.png", IMAGES / f"quickstart_{name}.png")
    run("raysim compare quickstart --plot pictures/dark.png --dark", folder, seen)
    shutil.copy(folder / "pictures" / "dark.png", IMAGES / "quickstart_comparison_dark.png")
    artifacts = folder / "mlruns" / run_id(folder) / "artifacts"
    for name in ("heat_map", "timeline", "partition"):
        shutil.copy(artifacts / f"{name}.png", IMAGES / f"quickstart_{name}.png")
    photograph(folder)


def photograph(folder: Path) -> None:
    """The dashboard as a browser shows it."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    import browser

    if reason := browser.missing():
        sys.exit(f"the picture of the dashboard is not taken: {reason}")
    with browser.dashboard("--experiment", "quickstart", cwd=folder) as address, browser.chromium(1500, 1150) as driver:
        page = browser.Page(driver)
        page.open(address)
        page.see("fedperfix · seed 0")
        page.close_assistant()
        page.until(lambda: page.lines_of_chart("personalized/accuracy_mean") == 9, "the chart of accuracy")
        driver.save_screenshot(str(IMAGES / "dashboard.png"))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        outputs = check(Path(place))
        print(outputs["raysim run yaml/quickstart.yaml"][-1800:])
        if "--check" not in sys.argv:
            draw(Path(place))


if __name__ == "__main__":
    main()
