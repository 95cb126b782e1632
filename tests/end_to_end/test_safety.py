"""What SECURITY.md promises of the source itself: nothing is unpickled, unpacked to disk or evaluated."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted(path for package in ("raysim", "algorithms") for path in (ROOT / package).rglob("*.py"))
MODULES = {"pickle", "_pickle", "shelve", "marshal", "dill", "joblib"}
CALLS = {"extractall", "extract", "unpack_archive", "unsafe_load", "full_load", "eval", "exec", "system"}


def offences(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call.split(".")[-1] in CALLS and not (call.endswith(".eval") and call != "builtins.eval"):
            yield f"calls {call}"
        if call in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            yield f"calls {call} without allow_pickle=False"
        if call == "np.lib.format.read_array" and keywords.get("allow_pickle") != "False":
            yield f"calls {call} without allow_pickle=False"
        if call == "torch.load" and keywords.get("weights_only") != "True":
            yield "calls torch.load without weights_only=True"
        if call in ("yaml.load", "yaml.load_all") and "_Loader" not in map(ast.unparse, node.args):
            yield f"calls {call} without the safe loader"
        if keywords.get("shell") == "True":
            yield f"calls {call} through a shell"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_unpickles_and_unpacks_nothing(path):
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "tar.extractall(folder)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_and_would_be_found_if_it_did(source):
    assert list(offences(source))
