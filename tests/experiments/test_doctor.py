import socket
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


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
