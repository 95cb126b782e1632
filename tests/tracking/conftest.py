"""An outbox that does not wait long, and what it shows the user."""

import threading

import pytest

from raysim.tracking.outbox import Outbox


@pytest.fixture
def notes():
    return []


@pytest.fixture
def outbox(notes, monkeypatch):
    monkeypatch.setattr("raysim.tracking.outbox.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("raysim.tracking.outbox.LONGEST_PAUSE", 0.05)
    monkeypatch.setattr("raysim.tracking.outbox.NOTIFY_AFTER", 0.1)
    return Outbox(notes.append, threading.Event())
