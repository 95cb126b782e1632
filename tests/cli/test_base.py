import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from raysim.cli import main

from configs import TINY


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return lambda *arguments: CliRunner().invoke(main, arguments)


def test_help_is_light():
    code = "import sys, raysim.cli; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_algorithms_lists_name_line_and_paper(invoke):
    output = invoke("algorithms").output
    assert "fedperfix  https://arxiv.org/abs/2308.09160" in output
    assert "A personal prefix plugin in every self-attention layer" in output


def test_partition_prints_tables_and_draws(invoke, tmp_path):
    result = invoke("partition", "tiny.yaml", "data.num_clients=6", "--plot", "p.png")
    assert result.exit_code == 0, result.output
    assert "digits, dirichlet: 6 clients" in result.output
    assert "shared" in result.output
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.yaml"], "none.yaml: can't be read"),
        (["run", "tiny.yaml", "algorithm.personal=[nothing]"], "the pattern 'nothing' matches no parameter"),
        (["run", "tiny.yaml", "data.num_clients=300"], "300 clients need at least 600 samples"),
        (["run", "tiny.yaml", "data.name=npz", "data.root=none.npz"], "there is no file none.npz"),
        (["partition", "tiny.yaml", "round=3"], "round: unknown key; did you mean 'rounds'?"),
        (["compare", "nothing"], "tracking.uri: there is no store sqlite:"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(invoke, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "error:" in result.output
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("cluster")
def test_run_and_compare(invoke, tmp_path):
    result = invoke("run", "tiny.yaml", "rounds=1")
    assert result.exit_code == 0, result.output
    assert "tiny: round 1 of 1: accuracy" in result.output
    assert f"raysim dashboard --experiment tiny --uri sqlite:///{tmp_path / 'mlflow.db'}" in result.output
    assert "raysim compare tiny" in result.output
    row = next(line for line in result.output.splitlines() if line.split()[:2] == ["tiny", "1"])
    assert "there is no experiment 'nothing' in sqlite:" in invoke("compare", "nothing").output
    again = invoke("compare", "tiny", "--plot", "c.png")
    assert again.exit_code == 0, again.output
    assert row in again.output.splitlines()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
