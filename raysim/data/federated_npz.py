"""Splits made by PFLlib or by the FedPerfix authors' code: ``train/<i>.npz`` and ``test/<i>.npz`` of every client i.

Each file has one array ``data``, a pickled dict of images ``x`` and labels ``y``. A pickle can run any code when it is read.
So it is read only where ``data.allow_legacy_pickle`` is set, and never unpickled: see ``legacy_pickle.py``.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from raysim.data.legacy_pickle import read_pickle
from raysim.data.npz_files import open_member, read_header
from raysim.data.pixel_range import as_8_bits, doubts, range_of
from raysim.errors import ConfigError

ClientData = tuple[NDArray[Any], NDArray[Any]]


def read_clients(root: Path, num_clients: int, allow_pickle: bool) -> tuple[list[ClientData], list[ClientData]]:
    """Images (n, C, H, W) or (n, H, W, C) and labels (n,) of every client's training and test file, as they are stored.

    Raises:
        ConfigError: pickles are not allowed, a file is missing or damaged, or holds something else.
    """
    form = "a folder with train/<i>.npz and test/<i>.npz of every client i"
    if not root.is_dir():
        raise ConfigError(f"data.root: {root} is not {form}")
    for split in ("train", "test"):
        ids = sorted(int(path.stem) for path in (root / split).glob("*.npz") if re.fullmatch("[0-9]+", path.stem))
        if not ids or ids != list(range(len(ids))):
            raise ConfigError(f"data.root: {root} is not {form}, from 0 without gaps: {split} has {ids[:10] or 'none'}")
        if len(ids) != num_clients:
            raise ConfigError(f"data.num_clients: {root / split} has {len(ids)} clients, not {num_clients}")
    if not allow_pickle:
        raise ConfigError(
            f"data.allow_legacy_pickle: the files in {root} are pickles. Set it to true to read them, by a reader that "
            "accepts arrays, dicts, lists, numbers and strings only"
        )
    train, test = ([_read(root / split / f"{i}.npz") for i in range(num_clients)] for split in ("train", "test"))
    return train, test


def _read(path: Path) -> ClientData:
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("data.npy")
            with open_member(archive, member) as stream:
                content = _object(stream, member.file_size)
        images, labels = content["x"], content["y"]
        for array in (images, labels):
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
                raise ValueError(f"its 'x' and 'y' must be arrays of numbers, and one is {_kind(array)}")
        if 0 in images.shape:
            raise ValueError(f"its images are empty: {images.shape}")
        return images, labels
    except Exception as error:  # damaged archives and pickles raise nearly anything
        reason = (
            "it has no array 'data' with a dict of 'x' and 'y'" if isinstance(error, (KeyError, TypeError)) else error
        )
        raise ConfigError(f"data.root: {path} can't be read: {reason}") from error


def _kind(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _object(stream: IO[bytes], size: int) -> Any:
    """The one object in a 0-dimensional ``.npy`` of dtype object, of at most ``size`` bytes."""
    shape, _, dtype = read_header(stream)
    if not dtype.hasobject or shape != ():
        raise TypeError(f"an array of {dtype} {shape}")
    return read_pickle(stream.read(size))


def as_uint8(images: list[NDArray[Any]], root: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """The images of all clients' files, training and test in turn, as one (n, H, W, C) of 8 bits, and what is doubtful.

    They are bytes, or floats in [-1, 1], [0, 1] or from 0 to 255, which is judged for each client.
    """
    shapes = {array.shape[1:] for array in images}
    if len(shapes) != 1 or len(shape := shapes.pop()) not in (2, 3):
        raise ConfigError(f"data.root: images in {root} differ in shape or are no images: {sorted(map(str, shapes))}")
    ranges: list[tuple[int, str]] = []
    for client in range(len(images) // 2):
        files, where = images[2 * client : 2 * client + 2], f"client {client} in {root}"
        # Both files together, since a small one may have no dark pixel; unless they are not even of one kind.
        alike = files[0].dtype == files[1].dtype
        joint = [range_of(np.concatenate(files), where)] * 2 if alike else [range_of(file, where) for file in files]
        ranges += [(client, of) for of in joint]
    whole = np.concatenate([as_8_bits(file, of) for file, (_, of) in zip(images, ranges, strict=True)])
    whole = whole[..., None] if whole.ndim == 3 else whole
    if whole.shape[3] not in (1, 3) and whole.shape[1] in (1, 3):
        whole = whole.transpose(0, 2, 3, 1)
    if whole.shape[3] not in (1, 3):
        raise ConfigError(f"data.root: images in {root} have shape {shape}; they need 1 or 3 channels")
    lines = [f"data.root: {root}: {line}" for line in doubts(ranges, float(whole.max()))]
    return np.ascontiguousarray(whole), lines
