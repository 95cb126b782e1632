"""A folder on a local disk or behind any fsspec URI (``s3://``, ``gs://``), whose files appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

TEMPORARY = ".part"  # ending of a file that is being written


class Folder:
    """Files by their path inside the folder, such as ``rounds/000004.json``.

    On a local disk a file is written under another name, flushed to the disk and renamed; an object store makes an upload
    visible when it is complete. So a reader never sees half a file, whatever kills the writer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self.local: Path | None = None
        self._remote: Any = None
        if "://" in uri and not uri.startswith("file://"):
            self._remote, self._root = fsspec.core.url_to_fs(self.uri)
        else:
            self.local = Path(uri.removeprefix("file://")).resolve()
            self.uri = str(self.local)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rsplit("/", 1)[-1]

    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it.

        Raises:
            OSError: for instance the disk is full; what was there before is still there.
        """
        if self.local is None:
            with self._as_os_error():
                self._remote.makedirs(self._parent(name), exist_ok=True)
                self._remote.pipe_file(f"{self._root}/{name}", data)
            return
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError if there is no such file, OSError if it can't be read."""
        if self.local is not None:
            return (self.local / name).read_bytes()
        with self._as_os_error():
            data: bytes = self._remote.cat_file(f"{self._root}/{name}")
        return data

    def files(self) -> Iterator[str]:
        """The paths of all files in the folder and below, ascending; none if there is no such folder."""
        if self.local is None:
            with self._as_os_error():
                self._remote.invalidate_cache()
                found = [path.removeprefix(self._root).lstrip("/") for path in self._remote.find(self._root)]
        else:
            found = [str(path.relative_to(self.local)) for path in self.local.rglob("*") if path.is_file()]
        yield from sorted(found)

    def folders(self) -> list[str]:
        """Names of the folders directly inside."""
        if self.local is not None:
            return sorted(path.name for path in self.local.iterdir() if path.is_dir()) if self.local.is_dir() else []
        with self._as_os_error():
            if not self._remote.exists(self._root):
                return []
            entries = self._remote.ls(self._root, detail=True)
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
            return
        with self._as_os_error():
            if self._remote.exists(f"{self._root}/{name}"):
                self._remote.rm_file(f"{self._root}/{name}")

    def clear(self) -> None:
        """Delete all files in the folder."""
        for name in list(self.files()):
            self.delete(name)

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """Every store has errors of its own."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.uri}: {error!r}") from error

    def _parent(self, name: str) -> str:
        return f"{self._root}/{name}".rsplit("/", 1)[0]


def _flush_folder(path: Path) -> None:
    """A rename is on the disk only when its folder is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
