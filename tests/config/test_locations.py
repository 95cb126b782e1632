import pytest

from raysim.config.locations import checkpoint_root, resolve_uri
from raysim.config.sections.running import CheckpointConfig, TrackingConfig
from raysim.errors import ConfigError


def test_the_default_store_lies_where_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri(TrackingConfig(uri="sqlite:///sub/a.db")) == f"sqlite:///{tmp_path}/sub/a.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_uri(TrackingConfig()) == "http://tracking:5000"
    assert resolve_uri(TrackingConfig(uri="sqlite:////a.db")) == "sqlite:////a.db"


def test_a_home_folder_is_understood_and_paths_that_a_uri_would_change_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAYSIM_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert resolve_uri(TrackingConfig(uri="sqlite:///~/runs/a.db")) == f"sqlite:///{tmp_path}/user/runs/a.db"
    assert resolve_uri(TrackingConfig(uri="sqlite:////50%/a b~#.db")) == "sqlite:////50%/a b~#.db"
    for odd in ("sqlite:////a?b/m.db", "sqlite:///a?b.db", "sqlite:////a%20b/m.db"):
        with pytest.raises(ConfigError, match=r"tracking.uri: the database .* has '(\?|%20)' in its path"):
            resolve_uri(TrackingConfig(uri=odd))
    (tmp_path / "what?").mkdir()
    monkeypatch.chdir(tmp_path / "what?")
    with pytest.raises(ConfigError, match=r"has '\?' in its path.*RAYSIM_HOME"):
        resolve_uri(TrackingConfig())


def test_in_a_job_nothing_lands_in_its_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "RAYSIM_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    here, checkpoints = TrackingConfig(), CheckpointConfig()
    assert checkpoint_root(checkpoints, resolve_uri(here)) == f"{tmp_path}/checkpoints"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_uri(here) == f"sqlite:///{tmp_path}/user/raysim/mlflow.db"
    assert resolve_uri(TrackingConfig(uri="sqlite:///own.db")) == f"sqlite:///{tmp_path}/user/raysim/own.db"
    assert checkpoint_root(checkpoints, resolve_uri(here)) == f"{tmp_path}/user/raysim/checkpoints"
    assert checkpoint_root(checkpoints, "http://tracking:5000") == f"{tmp_path}/user/raysim/checkpoints"
    assert checkpoint_root(CheckpointConfig(dir="own"), resolve_uri(here)) == f"{tmp_path}/user/raysim/own"
    monkeypatch.setenv("RAYSIM_HOME", str(tmp_path / "data"))
    assert resolve_uri(here) == f"sqlite:///{tmp_path}/data/mlflow.db"
    assert checkpoint_root(CheckpointConfig(dir="s3://bucket/x"), "http://tracking:5000") == "s3://bucket/x"
