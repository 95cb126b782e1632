"""The view of the progress in a notebook."""

import sys
from types import SimpleNamespace

import pytest

from raysim.experiments import notebook
from raysim.experiments.status import RoundProgress, Status


def test_only_a_kernel_is_a_notebook(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not notebook.in_notebook()
    for shell, expected in ((None, False), (SimpleNamespace(), False), (SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert notebook.in_notebook() is expected


@pytest.fixture
def outputs(monkeypatch):
    """What is shown in the one place, and that IPython is there."""
    shown = []
    handle = SimpleNamespace(update=shown.append)
    display = SimpleNamespace(HTML=str, display=lambda html, display_id: shown.append(html) or handle)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(notebook, "PAUSE_SECONDS", 0.0)
    return shown


def test_it_changes_in_its_place_and_leaves_only_messages(outputs, capsys):
    progress = {0: RoundProgress(3, 2, 8, ("actor 0: train <1>",))}
    with notebook.shown(None) as watch:
        assert "starting Ray and its actors" in outputs[-1]
        watch(Status("running", phases=("running",), progress=progress, events=("a message",)), ["mine"], [5])
        assert "mine, rounds" in outputs[-1]
        assert "client batches 2 of 8" in outputs[-1]
        assert "actor 0: train &lt;1&gt;" in outputs[-1]
    assert outputs[-1] == ""
    assert capsys.readouterr().err == "a message\n"


def test_it_is_gone_after_an_error(outputs):
    with pytest.raises(KeyError), notebook.shown(None):
        raise KeyError
    assert outputs[-1] == ""


def test_whoever_watches_sees_it_as_before(outputs):
    def watch(status, names, rounds):
        raise AssertionError

    with notebook.shown(watch) as given:
        assert given is watch
    assert outputs == []
