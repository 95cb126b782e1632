"""The YAML files that come with raysim, by name."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from raysim.cli import main
from raysim.config.examples import FOLDER, example, examples
from raysim.config.loading import load_config
from raysim.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent


def test_they_are_those_of_the_folder_yaml():
    found = {path.relative_to(ROOT / "yaml").with_suffix("").as_posix() for path in (ROOT / "yaml").rglob("*.yaml")}
    assert set(examples()) == found > {"quickstart", "fedperfix/cifar100_small", "methods/digits"}
    assert (FOLDER / "schema.json").read_bytes() == (ROOT / "yaml/schema.json").read_bytes()
    assert all(about.endswith((".", "?", "GPUs.")) for about in examples().values())


def test_a_name_is_found_unless_there_is_such_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("fedperfix/cifar100_small", ["rounds=3"]).rounds == 3
    Path("quickstart").write_text("{name: mine, algorithm: {name: fedavg}}")
    assert load_config("quickstart").name == "mine"
    for wrong in ("nothing", "../quickstart", "fedperfix"):
        assert example(wrong) is None
        with pytest.raises(ConfigError, match="can't be read: there is no such file, nor an example of this name"):
            load_config(wrong)


def test_the_command_lists_and_copies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = CliRunner().invoke(main, ["examples"]).output
    assert "quickstart\n    Personalised federated learning in two minutes on a laptop" in listed
    assert CliRunner().invoke(main, ["examples", "methods/digits"]).exit_code == 0
    assert Path("digits.yaml").read_text() == (ROOT / "yaml/methods/digits.yaml").read_text()
    again = CliRunner().invoke(main, ["examples", "methods/digits"])
    assert again.exit_code == 2
    assert CliRunner().invoke(main, ["examples", "methods/digits", "--to", "mine.yaml"]).exit_code == 0
    assert CliRunner().invoke(main, ["examples", "nothing"]).exit_code == 2
