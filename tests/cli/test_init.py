import pytest
from click.testing import CliRunner

from raysim.cli import main


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


def test_init_writes_no_file_over_another(invoke, tmp_path):
    assert invoke("init", "mine.yaml").exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"mine.yaml", "raysim.schema.json"}
    result = invoke("init", "mine.yaml", "--method", "fedper")
    assert (result.exit_code, "mine.yaml exists; --force writes over it" in result.output) == (2, True)
    assert invoke("init", "mine.yaml", "--method", "fedper", "--force").exit_code == 0
    result = invoke("init", "other.yaml", "--data", "cifr10")
    assert (result.exit_code, "did you mean 'cifar10'?" in result.output) == (2, True)
    assert not (tmp_path / "other.yaml").exists()
