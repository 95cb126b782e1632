"""npz archives from unknown sources: plain arrays only, and no more memory than the machine has."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
from numpy.typing import NDArray


def read_npz(path: Path, wanted: Callable[[str], bool], zeros: Collection[str] = ()) -> dict[str, NDArray[Any]]:
    """The wanted arrays of an npz, by name; those in ``zeros`` with zeros for what is in them. Pickled ones are refused.

    A damaged archive raises nearly anything (zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError, ...), so
    callers catch ``Exception`` and name the file.
    """
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        found = {name: member for name, member in members.items() if wanted(name)}
        check_memory(sum(member.file_size for name, member in found.items() if name not in zeros))
        arrays = {}
        for name, member in found.items():
            with open_member(archive, member) as stream:
                if name in zeros:
                    shape, _, dtype = read_header(stream)
                    arrays[name] = np.broadcast_to(np.zeros((), dtype), shape)
                else:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
        return arrays


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type of the array in a ``.npy``."""
    version = np.lib.format.read_magic(stream)
    readers: dict[tuple[int, int], Callable[[Any], Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran, dtype = readers[version](stream)
    return shape, fortran, dtype


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member of an npz; reading it gives no more bytes than the archive's directory says."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # zipfile unpacks other methods a whole block at a time, whatever it grows to.
        raise ValueError(f"{member.filename} is compressed by method {member.compress_type}, which numpy never uses")
    check_memory(member.file_size)
    return archive.open(member)


def check_memory(size: int) -> None:
    """Refuse what would not fit into this machine's memory, before reading it makes the machine slow or kills processes."""
    free = psutil.virtual_memory().available
    if size > free:
        raise ValueError(f"it unpacks to {size / 2**30:,.1f} GiB, and this machine has {free / 2**30:,.1f} GiB free")
