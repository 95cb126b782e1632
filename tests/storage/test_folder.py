import errno
import os

import pytest

from raysim.storage.folder import TEMPORARY, Folder


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    made = Folder(str(tmp_path / "a") if request.param == "local" else f"memory://{tmp_path.name}/a")
    yield made
    made.clear()


def test_files_and_folders(folder):
    assert list(folder.files()) == []
    assert folder.folders() == []
    folder.write("one.json", b"1")
    folder.write("runs/two.json", b"2")
    folder.write("one.json", b"3")
    assert list(folder.files()) == ["one.json", "runs/two.json"]
    assert folder.folders() == ["runs"]
    assert folder.read("one.json") == b"3"
    assert (folder / "runs").read("two.json") == b"2"
    assert (folder / "runs").name == "runs"
    folder.delete("one.json")
    folder.delete("one.json")
    with pytest.raises(FileNotFoundError):
        folder.read("one.json")
    folder.clear()
    assert list(folder.files()) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    folder.write("a", b"before")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.write("a", b"after")
    assert folder.read("a") == b"before"
    assert list(folder.files()) == ["a"]


def test_nobody_sees_half_a_file(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("os.fsync", lambda _: seen.append(sorted(p.name for p in tmp_path.iterdir())))
    Folder(str(tmp_path)).write("a", b"x")
    assert seen[0] == [f"a{TEMPORARY}"]
    assert seen[-1] == ["a"]


def test_an_object_store_that_fails_is_an_operating_system_error(monkeypatch):
    folder = Folder("memory://b")

    def broken(*_, **__):
        raise RuntimeError("403 Forbidden")

    for name in ("pipe_file", "find", "exists", "cat_file"):
        monkeypatch.setattr(folder._remote, name, broken)
    for call in (
        lambda: folder.write("a", b""),
        lambda: list(folder.files()),
        folder.folders,
        lambda: folder.delete("a"),
        lambda: folder.read("a"),
    ):
        with pytest.raises(OSError, match=r"memory://b.*403 Forbidden"):
            call()


def test_a_folder_has_one_name(tmp_path):
    assert Folder(f"file://{tmp_path}/a").uri == Folder(f"{tmp_path}/b/../a/").uri == f"{tmp_path.resolve()}/a"
