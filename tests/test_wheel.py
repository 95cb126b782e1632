"""The wheel has all that is needed: installed beside nothing else of this repository, it runs an example by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_installed_wheel_runs_an_example(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    sources = tmp_path / "sources"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(sources)], check=True)  # without what lies around here
    # The wheel is made from the sdist, which so has all that is needed, too.
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(tmp_path), str(sources)], check=True)
    (wheel,), (_,) = tmp_path.glob("raysim-*.whl"), tmp_path.glob("raysim-*.tar.gz")
    site, folder = tmp_path / "site", tmp_path / "empty"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    folder.mkdir()
    code = "import raysim, sys; print(raysim.__file__); from raysim.cli import main; main()"

    def raysim(*arguments: str) -> str:
        run = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(site), "RAYSIM_HOME": str(folder)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        where, _, rest = run.stdout.partition("\n")
        assert where.startswith(str(site))
        return rest

    assert "fedperfix/cifar100_small" in raysim("examples")
    assert "round 2 of 2" in raysim("run", "quickstart", "rounds=2", "study=null", "resources.num_actors=1")
    assert (folder / "mlflow.db").is_file()
