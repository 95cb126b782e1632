"""Calls to MLflow wait for the server, and one that it refuses fails its own run only."""

import threading
import time

import pytest

from raysim.errors import ConfigError, Stopped
from raysim.tracking.outbox import Outbox


def test_what_the_server_refuses_ends_the_run_soon(outbox):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    def refused():
        raise MlflowException("the run was deleted", error_code=RESOURCE_DOES_NOT_EXIST)

    outbox.check()
    outbox.put(refused)
    with pytest.raises(ConfigError, match="MLflow refuses what the run logs: .*the run was deleted"):
        outbox.flush(5)
    with pytest.raises(ConfigError, match="refuses"):
        outbox.check()


def test_what_is_refused_of_a_run_is_no_other_runs_affair(outbox):
    one, other, made = outbox.for_run("one"), outbox.for_run("other"), []

    def refused():
        raise ValueError("it was deleted")

    one.put(refused)
    one.put(lambda: made.append("one"))
    one.put(lambda: made.append("the end of one"), in_any_case=True)
    other.put(lambda: made.append("other"))
    assert outbox.flush(5)
    other.check()
    assert made == ["the end of one", "other"]
    assert list(outbox.refusals()) == ["one"]
    with pytest.raises(ConfigError, match="it was deleted"):
        one.check()
    with pytest.raises(ConfigError, match="MLflow refuses what one logs: it was deleted"):
        outbox.check_all()


def test_whoever_asks_can_be_stopped(notes):
    stop = threading.Event()
    outbox = Outbox(notes.append, stop)
    down = True

    def call():
        if down:
            raise ConnectionError("refused")

    threading.Timer(0.3, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(Stopped):
        outbox.ask(call)
    assert time.monotonic() - begun < 5
    down = False
    assert outbox.flush(10)
