import errno
import os
import subprocess
import sys

import pytest
import requests

from raysim.errors import ConfigError
from raysim.tracking.mlflow_reader import checkpoint_of
from raysim.tracking.mlflow_store import MLflowStore, check_writes, may_pass
from raysim.tracking.tags import CHECKPOINT_TAG


def test_a_run_is_found_by_its_checkpoints_and_its_checkpoints_by_the_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = MLflowStore(uri, "e")
    run = tracker.start("a", {}, {CHECKPOINT_TAG: "/o'b"})
    # Whoever started it was killed before it had its parameters.
    assert tracker.start("a", {"seed": 3}, {CHECKPOINT_TAG: "/o'b"}) == run
    assert tracker._client.get_run(run).data.params == {"seed": "3"}
    assert tracker.start("b", {}, {CHECKPOINT_TAG: "/b"}) != run
    assert checkpoint_of(uri, run) == "/o'b"
    tracker.log_round(run, 3, {"cohort/size": 1.0}, 1000)
    tracker.log_round(run, 3, {"cohort/size": 1.0}, 1000)
    assert tracker.rounds_logged(run) == {3}
    tracker.end(run, "KILLED")
    assert tracker.start("a", {}, {CHECKPOINT_TAG: "/o'b"}) != run  # it was not left open by somebody who died
    with pytest.raises(ConfigError, match=r"no folder nothing, and no such run"):
        checkpoint_of(uri, "nothing")
    with pytest.raises(ConfigError, match="has no checkpoints"):
        checkpoint_of(uri, tracker.start("b", {}, {}))
    with pytest.raises(ConfigError, match="no MLflow store"):
        checkpoint_of(f"sqlite:///{tmp_path}/none.db", "r")


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", "http://127.0.0.1:9"])
def test_a_store_that_can_not_be_used_is_said_soon(uri):
    with pytest.raises(ConfigError, match="tracking.uri: .* can't be used"):
        MLflowStore(uri, "experiment")
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ  # later, an outage is waited out


@pytest.mark.slow
def test_runs_that_start_at_once_in_an_empty_folder_share_one_new_store(tmp_path):
    code = "import sys, raysim.tracking.mlflow_store as s; print(s.MLflowStore(sys.argv[1], 'e').experiment_id)"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    started = [subprocess.Popen([sys.executable, "-c", code, uri], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert len(set(outputs)) == 1


def test_a_data_set_is_an_input_of_its_run_once(tmp_path):
    tracker = MLflowStore(f"sqlite:///{tmp_path}/mlflow.db", "e")
    run = tracker.start("a", {}, {})
    for _ in range(2):  # an answer may be lost, and the call made again
        tracker.log_dataset(run, "digits", "0123abcd", {"name": "digits"}, {"train_samples": 7})
    (found,) = tracker._client.get_run(run).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("digits", "0123abcd")
    assert found.dataset.profile == '{"train_samples": 7}'


def http_error(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (requests.ConnectionError(), True),
        (http_error(503), True),
        (http_error(429), True),
        (http_error(413), False),  # a server that takes no large files
        (http_error(403), False),
        (PermissionError(13, "/mlartifacts"), False),  # a folder of the server's machine
        (OSError(errno.EROFS, "read-only"), False),
        (OSError(errno.ENOSPC, "no space left"), True),
        (ValueError(), False),
    ],
)
def test_what_is_worth_waiting_for(error, may):
    assert may_pass(error) is may


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "postgresql://u:secret@localhost:1/x",
            r"the kind postgresql needs the module psycopg2?: pip install 'psycopg",
        ),
        ("mysql://u:secret@localhost:1/x", "needs the module MySQLdb: pip install 'mysqlclient'"),
    ],
)
def test_a_database_without_its_driver_is_one_line_with_the_package(uri, message, monkeypatch):
    for module in ("psycopg", "psycopg2", "MySQLdb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=message) as found:
        MLflowStore(uri, "x")
    assert "secret" not in str(found.value)
    with pytest.raises(ConfigError, match=message):
        check_writes(uri)
