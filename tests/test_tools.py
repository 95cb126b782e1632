"""``raysim init``, ``doctor``, ``schema``, ``completion`` and ``run --dry-run``."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from algorithms import ALGORITHMS
from raysim.cli import main
from raysim.config.loading import children, load_config
from raysim.config.template import commented
from raysim.config.json_schema import json_schema

ROOT = Path(__file__).parent.parent


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAYSIM_HOME", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments):
        result = CliRunner().invoke(main, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


# JSON Schema.


def test_the_schema_in_the_repository_is_that_of_the_code():
    stored = (ROOT / "yaml" / "schema.json").read_text()
    assert stored == json_schema(), "raysim schema > yaml/schema.json"


@pytest.mark.parametrize("path", sorted((ROOT / "yaml").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_schema_accepts_every_file_of_the_repository(path):
    first = path.read_text().splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).is_file()
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json_schema()))


@pytest.mark.parametrize(
    "change",
    [
        {"rouns": 3},
        {"rounds": "three"},
        {"train": {"optimizer": {"name": "adam"}}},
        {"algorithm": {"name": "fedavgg"}},
        {"algorithm": {"name": "fedperfix", "mid_dims": 3}},
        {"resources": {"num_actors": "all"}},
        {"study": {"grids": {}}},
        {"evaluate": {"clients": "some"}},
    ],
    ids=str,
)
def test_the_schema_finds_mistakes(change):
    fine = {"rounds": 3, "algorithm": {"name": "fedavg"}, "study": {"grid": {"seed": [0]}}}
    jsonschema.validate(fine, json.loads(json_schema()))
    jsonschema.validate({"algorithm": {"name": "mine:Method", "mu": 1}}, json.loads(json_schema()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**fine, **change}, json.loads(json_schema()))


# raysim init.


@pytest.mark.parametrize("method", ALGORITHMS)
@pytest.mark.parametrize("data", ["digits", "cifar100", "npz", "federated_npz", "organamnist", "image_folder"])
def test_a_written_file_is_valid_and_its_comments_are_the_defaults(data, method, tmp_path):
    text = commented(data, method, "mine")
    (tmp_path / "mine.yaml").write_text(text)
    config = load_config(tmp_path / "mine.yaml")
    assert (config.name, config.data.name, config.algorithm.name) == ("mine", data, method)
    assert len(children(config)) == 3 * len({method, "fedavg", "local"})
    # Every comment that is a key may be made one, and changes nothing.
    uncommented = re.sub(r"^( *)#(?=\w)", r"\1", text, flags=re.MULTILINE)
    (tmp_path / "all.yaml").write_text(uncommented)
    whole = load_config(tmp_path / "all.yaml")
    assert whole.model_dump() == config.model_dump()
    assert "\nresources:\n" in uncommented


def test_init_writes_no_file_over_another(invoke, tmp_path):
    assert invoke("init", "mine.yaml").exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"mine.yaml", "raysim.schema.json"}
    result = invoke("init", "mine.yaml", "--method", "fedper")
    assert (result.exit_code, "mine.yaml exists; --force writes over it" in result.output) == (2, True)
    assert invoke("init", "mine.yaml", "--method", "fedper", "--force").exit_code == 0
    result = invoke("init", "other.yaml", "--data", "cifr10")
    assert (result.exit_code, "did you mean 'cifar10'?" in result.output) == (2, True)
    assert not (tmp_path / "other.yaml").exists()


# raysim run --dry-run.


def test_a_dry_run_shows_everything_and_starts_nothing(invoke, tmp_path):
    result = invoke("run", str(ROOT / "yaml" / "quickstart.yaml"), "--dry-run", "rounds=3")
    assert result.exit_code == 0, result.output
    assert "rounds: 3" in result.output
    assert "shared 101,568 · personal 25,610 · 406,272 bytes down" in result.output
    assert "a round: 3.25 MB down" in result.output  # 8 clients with 406,272 bytes each
    assert "102.4 kB per client that has trained, 0.00 GB for 16" in result.output
    assert "9 runs one after another: about" in result.output
    assert list(tmp_path.iterdir()) == []


# raysim doctor.


def test_a_doctor_finds_all_well(invoke):
    result = invoke("doctor", str(ROOT / "yaml" / "quickstart.yaml"))
    assert result.exit_code == 0, result.output
    assert "wrong" not in result.output
    for what in ("Python: ", "torch: ", "GPU: ", "Ray: ", "MLflow: sqlite:///", "1,797 images of 8×8×1 in 10 classes"):
        assert what in result.output


def test_a_doctor_says_what_is_wrong_and_what_to_do(invoke, tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{nobody.getsockname()[1]}")
        (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one" * 9)
        result = invoke("doctor", str(ROOT / "yaml" / "quickstart.yaml"), "study=null", "data.subset=5000")
    assert result.exit_code == 1
    assert "does not answer" in result.output
    assert "ray start --head" in result.output
    assert "mlflow.db can't be written: file is not a database" in result.output
    assert "data.subset: 5000 samples asked, the data set has 1797" in result.output


def test_a_doctor_asks_the_server(invoke):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        result = invoke("doctor", "--uri", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert result.exit_code == 1
    assert "start the server, or set MLFLOW_TRACKING_URI" in result.output


# Completion.


def test_a_shell_completes_commands_and_keys(invoke):
    for shell in ("bash", "zsh", "fish"):
        assert "_RAYSIM_COMPLETE" in invoke("completion", shell).output
    script = "from raysim.cli import main; main(prog_name='raysim')"
    environment = {**os.environ, "_RAYSIM_COMPLETE": "bash_complete"}

    def completions(words, at):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, "COMP_WORDS": words, "COMP_CWORD": str(at)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completions("raysim comp", 1) == ["compare", "completion"]
    assert completions("raysim run a.yaml train.optimizer.l", 3) == ["train.optimizer.lr="]
    assert "algorithm.mid_dim=" in completions("raysim run a.yaml algorithm.", 3)
