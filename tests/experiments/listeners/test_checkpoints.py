"""When checkpoints are begun, with a run that only counts its rounds."""

from types import SimpleNamespace

import numpy as np
import pytest

from raysim.experiments.listeners import checkpoints
from raysim.experiments.listeners.checkpoints import CheckpointListener
from raysim.storage.checkpoint import Snapshot, rounds_in
from raysim.storage.folder import Folder
from raysim.storage.records import Records

from configs import tiny

FULL = OSError(28, "No space left on device")


class CountedRun:
    """A run as the listener sees it, between its rounds."""

    def __init__(self, every, rounds=10, keep=9):
        self.config = tiny(rounds=rounds, checkpoint={"every": every, "keep": keep})
        self.next_round, self.rounds, self.held = 0, rounds, []
        index = SimpleNamespace(hold=lambda: self.held.append(True), release=lambda: self.held.pop())
        layout = SimpleNamespace(size=3)
        self.states = SimpleNamespace(index=index, layout=layout, read=lambda a: np.zeros((len(a), 3), np.float32))
        self.server_rows = SimpleNamespace(index=index, layout=SimpleNamespace(size=0), read=None)

    def snapshot(self):
        assert self.held == [True, True]  # its states stay where they are while they are copied
        nobody, no_version = np.full(8, -1, np.int64), np.zeros(8, np.int64)
        return Snapshot(self.next_round, np.zeros(2, np.float32), {}, Records(), None, nobody, no_version)


@pytest.fixture
def listen(tmp_path):
    notes, written = [], []

    def make(run):
        listener = CheckpointListener(Folder(str(tmp_path)), "mine", notes.append, written.append)
        listener.rounds_begin(run, None)
        return listener

    return make, notes, written, Folder(str(tmp_path))


def play(run, listener, rounds, wait=True):
    for _ in range(rounds):
        run.next_round += 1
        listener.between_rounds(run)
        if wait and listener._writer.pending:
            listener._writer._pending.result()


def test_every_few_rounds_and_at_the_end(listen):
    make, notes, written, folder = listen
    run = CountedRun(every=3)
    listener = make(run)
    play(run, listener, 10)
    assert rounds_in(folder) == [3, 6, 9]
    listener.rounds_done(run)
    listener.rounds_end()
    assert rounds_in(folder) == [10]  # of a finished run the last one is kept
    assert len(written) == 4
    assert (notes, run.held) == ([], [])


def test_what_could_not_be_written_is_tried_again_after_the_next_round(listen, monkeypatch):
    make, notes, written, folder = listen
    run = CountedRun(every=3)
    listener = make(run)
    write = Folder.write

    def full(self, name, data):
        raise FULL

    monkeypatch.setattr(Folder, "write", full)
    play(run, listener, 3, wait=False)
    with pytest.raises(OSError, match="No space left"):
        listener._writer._pending.result()
    monkeypatch.setattr(Folder, "write", write)
    play(run, listener, 1)  # takes note of the failure, and begins another
    play(run, listener, 1)
    assert rounds_in(folder) == [4]
    assert len(notes) == 1
    assert notes[0].startswith("mine: a checkpoint can't be written to ")
    assert (len(written), run.held) == (1, [])
    listener.rounds_end()


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_disk_that_is_full_at_the_very_end_is_waited_for(listen, monkeypatch, comes_back):
    make, notes, _, folder = listen
    run = CountedRun(every=3, rounds=4)
    listener = make(run)
    play(run, listener, 4)
    now, write = [0.0], Folder.write

    def full(self, name, data):
        if not comes_back or now[0] < 20:
            raise FULL
        write(self, name, data)

    monkeypatch.setattr(Folder, "write", full)
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(checkpoints, "time", clock)
    listener.rounds_done(run)
    listener.rounds_end()
    assert "No space left on device" in notes[0]  # said once, not with every attempt
    if comes_back:
        assert (rounds_in(folder), len(notes)) == ([4], 1)
    else:
        assert (rounds_in(folder), len(notes)) == ([3], 2)
        assert "after 60 seconds of trying: the run is complete, with all its results in MLflow" in notes[1]
        assert 60 <= now[0] <= 70
    assert run.held == []
