"""Whatever the algorithm's code consists of is part of its fingerprint."""

import importlib
import linecache
import sys

import numpy as np
import pytest

from raysim.config.fingerprint import algorithm_digest, array_digest

from configs import tiny

METHOD = """from raysim.algorithms import FederatedAlgorithm
{imports}
MU = {mu}

class Mine(FederatedAlgorithm):
    pi: int = 3

    def helper(self):
        return MU
"""


def method(imports="", mu=0.1):
    return METHOD.format(imports=imports, mu=mu)


def forget():
    """As a new process would begin: nothing of the user's is imported."""
    for module in [name for name in sys.modules if "of_test" in name]:
        del sys.modules[module]
    importlib.invalidate_caches()
    sys.path_importer_cache.clear()
    linecache.clearcache()


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a user's modules and returns the digest of a method of theirs."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def digest(name="mine_of_test:Mine", **files):
        for path, text in files.items():
            file = tmp_path / f"{path.replace('__in__', '/')}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        forget()
        return algorithm_digest(tiny(algorithm={"name": name}))

    yield digest
    forget()


def test_each_algorithm_has_its_own_whatever_its_keys():
    digests = {algorithm_digest(tiny(algorithm={"name": name})) for name in ("fedavg", "fedper", "methods:Slow")}
    assert len(digests) == 3
    assert algorithm_digest(tiny()) == algorithm_digest(tiny(algorithm={"name": "fedperfix", "mid_dim": 8}))


def test_a_constant_beside_the_class_is_part_of_it(write):
    first = write(mine_of_test=method(mu=0.1))
    assert write(mine_of_test=method(mu=100)) != first
    assert write(mine_of_test=method(mu=0.1)) == first


@pytest.mark.parametrize(
    "imports",
    [
        "import helper_of_test",
        "from helper_of_test import strength",
        "def late():\n    from helper_of_test import strength\n    return strength",
        "import other_of_test",  # which imports it
    ],
)
def test_a_module_beside_it_that_it_imports_is_part_of_it(write, imports):
    files = {"mine_of_test": method(imports), "other_of_test": "import helper_of_test\n"}
    first = write(**files, helper_of_test="strength = 1\n")
    assert write(helper_of_test="strength = 2\n") != first
    assert write(helper_of_test="strength = 1\n", unrelated_of_test="x = 1\n") == first


@pytest.mark.parametrize(
    "imports", ["from . import helper", "from .helper import strength", "import pack_of_test.helper"]
)
def test_in_a_package_what_is_imported_is_part_of_it(write, imports):
    name = "pack_of_test.mine:Mine"
    files = {"__init__": "", "mine": method(imports), "other": "x = 1\n", "helper": "strength = 1\n"}
    first = write(name, **{f"pack_of_test__in__{file}": text for file, text in files.items()})
    assert write(name, pack_of_test__in__helper="strength = 2\n") != first
    assert write(name, pack_of_test__in__helper="strength = 1\n", pack_of_test__in__other="x = 2\n") == first


def test_nothing_is_imported_for_it(write):
    write(
        mine_of_test=method("def never():\n    import this, numpy, not_there_of_test, broken_of_test, raises_of_test")
    )
    assert "this" not in sys.modules
    files = {
        "broken_of_test": "def (",
        "raises_of_test__in____init__": "raise RuntimeError",
        "raises_of_test__in__a": "",
    }
    first = write(**files, mine_of_test=method("def never():\n    import broken_of_test, raises_of_test.a"))
    assert write(raises_of_test__in____init__="raise ValueError") != first


def test_installed_packages_and_raysim_itself_are_not_part_of_it(tmp_path, write, monkeypatch):
    """A project with its virtual environment, and raysim's own sources, below the folder of the user's file."""
    imports = "import library_of_test, raysim.seeds\nfrom algorithms import fedavg"
    site = tmp_path / ".venv" / "lib" / "site-packages"
    site.mkdir(parents=True)
    (tmp_path / "raysim").mkdir()
    (tmp_path / "raysim" / "seeds.py").write_text("")
    monkeypatch.syspath_prepend(site)
    monkeypatch.syspath_prepend(tmp_path)
    (site / "library_of_test.py").write_text("x = 1")
    first = write(mine_of_test=method(imports))
    (site / "library_of_test.py").write_text("x = 2")
    (tmp_path / "raysim" / "seeds.py").write_text("changed = True")
    assert write() == first


def test_of_an_installed_method_its_own_package_is_part_of_it(tmp_path, write, monkeypatch):
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def digest(helper="x = 1", neighbour="x = 1"):
        (site / "pack_of_test").mkdir(exist_ok=True)
        (site / "pack_of_test" / "__init__.py").write_text("")
        (site / "pack_of_test" / "mine.py").write_text(method("from . import helper\nimport neighbour_of_test"))
        (site / "pack_of_test" / "helper.py").write_text(helper)
        (site / "neighbour_of_test.py").write_text(neighbour)
        return write("pack_of_test.mine:Mine")

    first = digest()
    assert digest(helper="x = 2") != first
    assert digest(neighbour="x = 2") == first


def test_a_file_that_is_edited_later_is_not_what_this_process_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_of_test.py"
    file.write_text(method(mu=3))
    config = tiny(algorithm={"name": "edited_of_test:Mine"})
    before = algorithm_digest(config)
    file.write_text(method(mu=4))
    assert algorithm_digest(config) == before
    forget()


def test_arrays_by_type_shape_value_and_name():
    one = np.arange(4, dtype=np.float32)
    different = [[one], [one.reshape(2, 2)], [one.astype(np.float64)], [one + 1], [one, one], {"a": one}, {"b": one}]
    assert len({array_digest(arrays) for arrays in different}) == len(different)
    assert array_digest({"a": one, "b": one + 1}) == array_digest({"b": one + 1, "a": one})
    assert array_digest([one.reshape(2, 2).T]) == array_digest([np.ascontiguousarray(one.reshape(2, 2).T)])
