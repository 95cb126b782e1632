"""Whatever the text of a configuration: it is read, or a ``ConfigError`` names the file. No traceback, no hang, no bomb."""

import json
import time

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from raysim.config.loading import load_config
from raysim.errors import ConfigError

from configs import TINY
from hostile import checked, told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


def yaml_files(root):
    return sorted((root / "yaml").rglob("*.yaml"))


@pytest.fixture(scope="module")
def load(folder):
    def load(content, *overrides):
        path = folder / "run.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        with told("run.yaml", "command line"):
            load_config(path, overrides)

    return load


@checked
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200), st.text("[]{}:,-?&*!<>|'\"#%@ \n\tab1.", max_size=60)))
def test_yaml_of_any_bytes(load, content):
    load(content)


KEYS = [
    "name",
    "seed",
    "rounds",
    "data",
    "partition",
    "root",
    "model",
    "kwargs",
    "algorithm",
    "train",
    "optimizer",
    "lr",
]
KEYS += ["cohort", "schedule", "size", "fraction", "evaluate", "clients", "resources", "tracking", "study", "seeds"]
KEYS += ["data.partition.alpha", "partition.name", "int", "list", "", "dict[str,any]"]
WORDS = ["fedavg", "fedperfix", "federated_npz", "npz", "own", "file", "dirichlet", "auto", "all", "sgd", "~", "\0"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10),
    st.integers(-(2**300), 2**300),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
)
TREES = st.recursive(
    SCALARS,
    lambda inside: st.one_of(
        st.lists(inside, max_size=4),
        st.dictionaries(
            st.one_of(st.sampled_from(KEYS), st.integers(0, 2), st.none(), st.floats()), inside, max_size=5
        ),
    ),
    max_leaves=20,
)


def places(tree, path=()):
    """The paths of all values in nested mappings and lists."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield (*path, key)
        if isinstance(tree[key], (dict, list)):
            yield from places(tree[key], (*path, key))


WHOLE = {
    **TINY,
    "evaluate": {"clients": "all"},
    "tracking": {"uri": "x"},
    "model": {**TINY["model"], "name": "resnet18"},
}
WHOLE |= {
    "study": [{"name": "a", "seeds": [1, 2], "data": {"partition": {"alpha": 1.0}}, "model": {"kwargs": {"depth": 1}}}]
}


@checked
@given(TREES, st.sampled_from([(), *places(WHOLE)]), st.sampled_from([None, *KEYS]))
def test_yaml_of_any_tree(load, tree, place, key):
    """Anything in the place of any value of a valid file, or beside it under another key."""
    content = json.loads(json.dumps(WHOLE))
    at = content
    for step in place[:-1]:
        at = at[step]
    if place:
        at[place[-1] if key is None or isinstance(at, list) else key] = tree
    load(yaml.safe_dump(content if place else tree), "rounds=3", "data.partition.min_samples=13")


VALUES = [
    "9" * 5000,
    "0x" + "f" * 5000,
    "2020-13-45",
    '"\\UFFFFFFFF"',
    '"\\ud800"',
    "!!int x",
    "!!bool x",
    "!!map [1]",
    "1:2:3",
]
VALUES += [
    ".nan",
    "-.inf",
    "1e999",
    "null",
    "&a [*a]",
    "!!binary aGk=",
    "{1: 2}",
    "[[]]",
    "{<<: 1}",
    "!!set {1, 2}",
    "'",
    "~",
]
TOKENS = [
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!!python/name:os.system ",
    "? ",
    "- ",
    ": ",
    "{",
    "[",
    "=",
    "'",
    "---\n",
    "\t",
]


@checked
@given(st.data())
def test_mutations_of_the_files_in_the_repository(load, pytestconfig, data):
    text = data.draw(st.sampled_from(yaml_files(pytestconfig.rootpath))).read_text()
    lines = [line for line in text.split("\n") if not line.startswith("#")]
    for _ in range(data.draw(st.integers(1, 2))):
        i, j = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        cut = data.draw(st.integers(0, len(lines[i])))
        match data.draw(st.sampled_from(["replace", "replace", "replace", "insert", "move", "indent", "remove"])):
            case "replace":
                lines[i] = lines[i].partition(":")[0] + ": " + data.draw(st.sampled_from(VALUES))
            case "insert":
                lines[i] = lines[i][:cut] + data.draw(st.sampled_from(TOKENS)) + lines[i][cut:]
            case "move":
                lines[i], lines[j] = lines[j], lines[i]
            case "indent":
                lines[i] = f"  {lines[i]}"
            case "remove":
                lines[i] = lines[i][:cut]
    load("\n".join(lines))


PATHS = [
    "study",
    "seed",
    "algorithm",
    "algorithm.name",
    "model.kwargs",
    "model.kwargs.a.b",
    "data.partition",
    "cohort.schedule",
]


@checked
@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.tuples(st.text(max_size=9) | st.sampled_from(PATHS), st.text(max_size=9)).map("=".join),
            st.tuples(st.sampled_from(PATHS), st.sampled_from([*VALUES, "{}", "[]", "{a: {b: 1}}"])).map("=".join),
        ),
        max_size=3,
    ),
    st.booleans(),
)
@example([".".join("a" * 5000) + "=1"], False)
@example(["a=1", "a.b=2"], False)
@example(["\udcff=\udcff"], False)
def test_any_overrides(load, overrides, study):
    load(yaml.safe_dump({**TINY, **({"study": [{"name": "a", "seeds": [1, 2]}]} if study else {})}), *overrides)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefghi", "bcdefghij", strict=False)
)
VALID = "algorithm: {name: fedavg}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB + VALID, "its aliases repeat"),
        (VALID + "model: {kwargs: {" + ", ".join(BOMB.strip().split("\n")) + "}}", "its aliases repeat"),
        (
            "a: &a {k: 1}\n"
            + "".join(
                f"{c}: &{c} {{<<: [{','.join([f'*{b}'] * 20)}]}}\n" for b, c in zip("abcdef", "bcdefg", strict=False)
            ),
            "its aliases repeat",
        ),
        ("&a [*a]", "an alias is inside the block that it refers to"),
        ("&a {<<: *a}", "an alias is inside the block that it refers to"),
        (VALID + "study: &s [{name: a, train: *s}]", "an alias is inside"),
        (VALID + "model: {kwargs: {a: " + "[" * 100 + "]" * 100 + "}}", "nested too deeply"),
        ("{a: " * 20_000, "nested too deeply"),
        (VALID + "seed: " + "9" * 5000, "no valid int"),
        (VALID + "seed: 0x" + "f" * 5000, "no valid int: the number is too large"),
        (VALID + "seed: !!int one", r"no valid int.*line 2"),
        (VALID + "seed: !!bool perhaps", "no valid bool"),
        (VALID + "name: !!binary aGk=", "could not determine a constructor"),
        (VALID + "name: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (VALID + "model: {kwargs: !!map [1]}", "expected a mapping node"),
        (VALID + 'name: "\\ud800"', "no valid str"),
        (VALID + 'name: "\\UFFFFFFFF"', "not valid YAML"),
        (VALID + "rounds: " + "x" * 10_000, r"rounds: .x+… is not allowed"),
        (VALID + "int: 1", "int: unknown key"),
        (VALID + "study: [{name: a, train: {1: 2}}]", r"study\[0\].*keys should be strings"),
        (VALID + "study: [{name: a, data.partition.alpha: 1}]", r"study\[0\]: data\.partition\.alpha: unknown key"),
    ],
)
def test_yaml_that_is_up_to_no_good(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=rf"(?s)run\.yaml: .*({message})"):
        load_config(tmp_path / "run.yaml", ["data.partition.min_samples=3"] if "data.partition" in content else [])
    assert time.monotonic() - start < 10


def test_dates_are_text_and_a_few_aliases_do_no_harm(tmp_path):
    (tmp_path / "run.yaml").write_text(VALID + "name: 2024-13-45\nmodel: {kwargs: {a: &a [1, 2], b: [*a, *a]}}")
    config = load_config(tmp_path / "run.yaml")
    assert (config.name, config.model.kwargs["b"]) == ("2024-13-45", [[1, 2], [1, 2]])
