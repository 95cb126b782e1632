"""``raysim.algorithms`` is the package's own whatever is on the path; ``algorithms`` is a second name that yields."""

import subprocess
import sys
from pathlib import Path

import raysim

OURS = Path(raysim.__file__).parents[1]


def python(folder: Path, code: str, *path: Path) -> list[str]:
    """What a new process in a folder prints, with entries put before and behind the installed packages on its path."""
    code = f"import sys; sys.path += {[str(entry) for entry in path]}\n{code}"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def own_project(folder: Path) -> Path:
    """A project that has its own folder ``algorithms``, with a method for raysim in it."""
    (folder / "algorithms").mkdir(parents=True)
    (folder / "algorithms/__init__.py").write_text("SORTING = True\n")
    (folder / "algorithms/mine.py").write_text(
        "from raysim.algorithms.base import FederatedAlgorithm\nclass Mine(FederatedAlgorithm):\n    pass\n"
    )
    return folder


def test_a_second_name_of_the_same_modules(tmp_path: Path) -> None:
    modules = sorted(path.stem for path in (OURS / "algorithms").glob("[a-z]*.py"))
    code = f"""
import importlib, algorithms, raysim.algorithms
assert algorithms is raysim.algorithms
for name in {modules}:
    assert importlib.import_module("algorithms." + name) is importlib.import_module("raysim.algorithms." + name), name
from algorithms.base import FederatedAlgorithm
print(FederatedAlgorithm.__module__, {len(modules)})
"""
    assert len(modules) > 30
    for path in ((), (OURS,)):  # by the editable installation, by a folder on the path
        assert python(tmp_path, code, *path) == ["raysim.algorithms.base", str(len(modules))]


def test_a_project_with_its_own_folder(tmp_path: Path) -> None:
    own_project(tmp_path)
    code = """
import algorithms
from raysim.algorithms import algorithm_class
print(algorithms.SORTING, *(algorithm_class({"name": name}).__module__ for name in ("algorithms.mine:Mine", "fedavg")))
"""
    assert python(tmp_path, code) == ["True", "algorithms.mine", "raysim.algorithms.fedavg"]


def test_a_projects_own_folder_behind_ours_on_the_path(tmp_path: Path) -> None:
    project = own_project(tmp_path / "project")
    (project / "algorithms/__init__.py").unlink()  # works without it, too
    code = """
from raysim.algorithms import algorithm_class
print(algorithm_class({"name": "algorithms.mine:Mine"}).__module__)
"""
    assert python(tmp_path, code, OURS, project) == ["algorithms.mine"]
