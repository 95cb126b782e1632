"""What is written is what is read, whatever befalls the files; the last intact checkpoint is never touched."""

import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from raysim.errors import CheckpointError
from raysim.storage.checkpoint import FORMAT, canonical, load, manifest_name, newest, rounds_in
from raysim.storage.checkpoint import _sha256 as sha256
from raysim.storage.folder import Folder
from raysim.storage.records import RoundRecord

from checkpointed import SIZE, CheckpointedRun


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "run"))


def test_what_is_written_is_read(folder):
    run = CheckpointedRun(folder)
    run.play(3, 1)
    assert run.write()
    checkpoint, problems = newest(folder)
    assert problems == []
    run.check(checkpoint)


def test_a_remote_folder():
    folder = Folder("memory://checkpoints/run")
    run = CheckpointedRun(folder)
    for round_ in range(5):
        run.play(round_, 7)
        assert run.write()
    assert rounds_in(folder) == [4, 5]
    run.check(newest(folder)[0])


def test_a_run_without_states_or_records(folder):
    run = CheckpointedRun(folder)
    assert run.write()
    run.records.rounds = [RoundRecord(0, 0, {"train/loss": 0.1})]
    checkpoint = load(folder, 0)
    assert list(checkpoint.states()) == []
    assert checkpoint.records.rounds == []


def test_only_what_changed_is_written_again(folder):
    run = CheckpointedRun(folder)
    run.play(*range(10))
    run.write()
    run.play(2, 3)
    run.write()
    run.play()
    run.write()
    assert run.reads == [10, 2]
    run.check(load(folder, 3))
    assert len(load(folder, 3).manifest.states) == 2
    assert len(load(folder, 3).manifest.rounds) == 3


def test_a_file_of_which_most_is_out_of_date_is_left_out(folder):
    run = CheckpointedRun(folder)
    run.play(*range(10))
    run.write()
    run.play(*range(6))  # four of ten are left: they are written again with the six
    run.write()
    assert run.reads == [10, 10]
    assert len(load(folder, 2).manifest.states) == 1
    run.check(load(folder, 2))


def test_large_states_come_in_several_files(folder, monkeypatch):
    monkeypatch.setattr("raysim.storage.checkpoint_writer.SEGMENT_BYTES", 4 * SIZE * 4)
    run = CheckpointedRun(folder)
    run.play(*range(10))
    run.write()
    assert run.reads == [4, 4, 2]
    run.check(load(folder, 1))


def test_many_rounds_do_not_become_many_files(folder):
    run = CheckpointedRun(folder)
    for round_ in range(45):
        run.play(round_ % 10)
        run.write()
    run.check(load(folder, 45))
    assert len(load(folder, 45).manifest.rounds) <= 20
    assert len(list(folder.files())) < 90


def test_the_last_ones_are_kept_and_nothing_else(folder, tmp_path):
    run = CheckpointedRun(folder, keep=2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("the user's own")
    for round_ in range(6):
        run.play(*range(round_, 10))
        run.write()
    assert rounds_in(folder) == [5, 6]
    needed = {e.name for r in (5, 6) for e in load(folder, r).manifest.files} | {manifest_name(r) for r in (5, 6)}
    assert set(folder.files()) == needed | {"notes.txt"}


def test_a_run_that_goes_on_writes_only_what_changed_since(folder):
    run = CheckpointedRun(folder)
    run.play(*range(10))
    run.write()
    again = CheckpointedRun(folder, since=load(folder, 1))
    again.records, again.round = load(folder, 1).records, 1
    again.addresses = 1000 * np.arange(10) + 1  # restored elsewhere, as version 0 of this life
    again.play(4)
    again.write()
    assert again.reads == [1]
    again.versions = np.ones(10, np.int64)
    again.versions[4] = 1
    again.check(load(folder, 2))


def test_rounds_that_are_played_again_forget_their_checkpoints(folder):
    run = CheckpointedRun(folder)
    for round_ in range(3):
        run.play(round_)
        run.write()
    CheckpointedRun(folder, since=load(folder, 2))
    assert rounds_in(folder) == [2]


def test_nothing_is_waited_for(folder):
    run, go = CheckpointedRun(folder), threading.Event()
    read = run.writer._read
    run.writer._read = lambda addresses: (go.wait(10), read(addresses))[1]
    run.play(1)
    assert not run.write(wait=False)
    assert run.writer.pending
    go.set()
    assert run.writer.finished(wait=True)
    run.check(load(folder, 1))


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(folder, monkeypatch):
    run = CheckpointedRun(folder)
    run.play(*range(10))
    run.write()
    before = {name: folder.read(name) for name in folder.files()}
    write, room = Folder.write, [2]

    def full(self, name, data):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data)

    for files in range(5):  # the disk is full after so many files
        room[0] = files
        monkeypatch.setattr(Folder, "write", full)
        run.play(1, 2)
        if files < 4:
            with pytest.raises(OSError, match="No space left"):
                run.write()
            assert {name: folder.read(name) for name in folder.files()} == before
        monkeypatch.setattr(Folder, "write", write)
    run.play(3)
    assert run.write()
    run.check(load(folder, run.round))


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "missing":
        path.unlink()
    else:
        path.write_bytes(save({"foreign": np.zeros(3)}))


@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "foreign"])
def test_every_damaged_file_is_named_and_the_one_before_is_found(folder, tmp_path, how):
    run = CheckpointedRun(folder)
    run.play(*range(10))
    run.write()
    run.play(1)
    run.write()
    own = {e.name for e in load(folder, 2).manifest.files} - {e.name for e in load(folder, 1).manifest.files}
    assert len(own) == 4
    for name in [*own, manifest_name(2)]:
        path = tmp_path / "run" / name
        intact = path.read_bytes()
        damage(path, how)
        checkpoint, problems = newest(folder)
        assert checkpoint.manifest.round == 1
        if not (name == manifest_name(2) and how == "missing"):
            assert [p.name for p in problems] == [name]
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                load(folder, 2)
        path.write_bytes(intact)
    run.check(load(folder, 2))


def test_the_manifest_of_another_round_or_format_is_refused(folder):
    run = CheckpointedRun(folder)
    run.play(1)
    run.write()
    folder.write(manifest_name(7), folder.read(manifest_name(1)))
    with pytest.raises(CheckpointError, match="it is of round 1"):
        load(folder, 7)
    body = {**json.loads(folder.read(manifest_name(1)))["manifest"], "format": FORMAT + 1}
    folder.write(manifest_name(8), json.dumps({"sha256": sha256(canonical(body)), "manifest": body}).encode())
    with pytest.raises(CheckpointError, match="another format"):
        load(folder, 8)


def test_a_manifest_that_points_outside_its_folder_is_refused(folder):
    run = CheckpointedRun(folder)
    run.play(1)
    run.write()
    body = json.loads(folder.read(manifest_name(1)))["manifest"]
    for name in ("/etc/passwd", f"../{body['shared']['name']}", f"{body['shared']['name']}/../x", "notes.txt"):
        body["shared"]["name"] = name
        folder.write(manifest_name(1), json.dumps({"sha256": sha256(canonical(body)), "manifest": body}).encode())
        with pytest.raises(CheckpointError, match="1 fields are wrong"):
            load(folder, 1)
