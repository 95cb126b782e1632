"""Splits made by PFLlib or by the FedPerfix authors' code: ``train/<i>.npz`` and ``test/<i>.npz`` of every client i.

Each file has one array ``data``, a pickled dict of images ``x`` and labels ``y``. A pickle can run any code when it is read.
So it is read only where ``data.allow_legacy_pickle`` is set, by an unpickler that knows numpy arrays, dicts, lists, tuples,
numbers and strings and nothing else: anything more is refused by name before it is called. Not even numpy's own classes are
handed to a pickle, since they can be made to read any memory: arrays are rebuilt from their bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.errors import ConfigError

Ints = NDArray[np.int64]
ClientData = tuple[NDArray[Any], NDArray[Any]]


class _Dtype:
    """A plain dtype as a pickle describes it; never numpy's own object, whose state a file could forge."""

    def __init__(self, spec: object) -> None:
        if not isinstance(spec, str) or np.dtype(spec).kind not in "biufSUO" or np.dtype(spec).fields:
            raise pickle.UnpicklingError(f"it holds an array of dtype {spec!r}")
        self.plain = np.dtype(spec)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise pickle.UnpicklingError("it holds an array of a dtype that is not plain")
        self.plain = self.plain.newbyteorder(state[1])


class _Array:
    """An array under construction; its bytes are copied and checked by numpy's public functions."""

    value: NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("it holds an array whose state is none")
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
    if (
        not isinstance(dtype, _Dtype)
        or not isinstance(shape, tuple)
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise pickle.UnpicklingError("it holds an array whose shape or dtype is none")
    if dtype.plain.hasobject:
        if not isinstance(content, list) or len(content) != math.prod(shape):
            raise pickle.UnpicklingError("it holds an array of objects whose length is not that of its shape")
        objects = np.empty(len(content), object)
        for i, item in enumerate(content):
            objects[i] = item
        return objects.reshape(shape)
    if isinstance(content, str):  # as Python 2 wrote bytes
        content = content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)):
        raise pickle.UnpicklingError("it holds an array whose content is no bytes")
    return np.frombuffer(content, dtype.plain).reshape(shape, order="F" if order == "F" else "C")


class _ArraysOnly(pickle.Unpickler):
    """Loads what numpy writes for arrays of numbers, and calls no function or class but those of this module."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct, which is only compared
            ("numpy", "dtype"): self._dtype,
            ("numpy.core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): self._frombuffer,
            ("_codecs", "encode"): self._latin1,  # how protocol 2 writes an array's bytes
        }
        found = known.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, and only arrays, dicts, lists, numbers and strings are read"
            )
        return found

    # Bound methods, since a pickle can set attributes of what it is given.

    def _dtype(self, spec: object, *_: object) -> _Dtype:
        return _Dtype(spec)

    def _reconstruct(self, kind: object, *_: object) -> _Array:
        if kind != "ndarray":
            raise pickle.UnpicklingError("it holds an array of a class of its own")
        return _Array()

    def _frombuffer(self, content: object, dtype: object, shape: object, order: object) -> NDArray[Any]:
        return _array(content, dtype, shape, order)

    def _scalar(self, dtype: object, content: object) -> Any:
        return _array(content, dtype, (), "C").item()

    def _latin1(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it holds bytes in the encoding {encoding!r}")
        return text.encode("latin1")


def _finished(value: Any) -> Any:
    """Arrays in the place of what they were built in."""
    if isinstance(value, _Array):
        return _finished(value.value)
    if isinstance(value, dict):
        return {key: _finished(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finished(item) for item in value]
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return _finished(value.item() if value.shape == () else list(value.flat))
    return value


def read_clients(root: Path, num_clients: int, allow_pickle: bool) -> tuple[list[ClientData], list[ClientData]]:
    """Images (n, C, H, W) or (n, H, W, C) and labels (n,) of every client's training and test file, as they are stored.

    Raises:
        ConfigError: pickles are not allowed, a file is missing or damaged, or holds something else.
    """
    form = "a folder with train/<i>.npz and test/<i>.npz of every client i"
    if not root.is_dir():
        raise ConfigError(f"data.root: {root} is not {form}")
    for split in ("train", "test"):
        ids = sorted(int(path.stem) for path in (root / split).glob("*.npz") if path.stem.isdigit())
        if not ids or ids != list(range(len(ids))):
            raise ConfigError(f"data.root: {root} is not {form}, from 0 without gaps: {split} has {ids[:10] or 'none'}")
        if len(ids) != num_clients:
            raise ConfigError(f"data.num_clients: {root / split} has {len(ids)} clients, not {num_clients}")
    if not allow_pickle:
        raise ConfigError(
            f"data.allow_legacy_pickle: the files in {root} are pickles. Set it to true to read them, with an unpickler that "
            "accepts arrays, dicts, lists, numbers and strings only"
        )
    train, test = ([_read(root / split / f"{i}.npz") for i in range(num_clients)] for split in ("train", "test"))
    return train, test


def _read(path: Path) -> ClientData:
    try:
        with zipfile.ZipFile(path) as archive:
            content = _unpickle(archive.read("data.npy"))
        images, labels = np.asarray(content["x"]), np.asarray(content["y"])
        if images.dtype.kind not in "buif" or labels.dtype.kind not in "buif" or 0 in images.shape:
            raise ValueError(f"images are {images.dtype} {images.shape}, labels {labels.dtype}, not numbers")
        return images, labels
    except Exception as error:  # damaged archives and pickles raise nearly anything
        reason = (
            "it has no array 'data' with a dict of 'x' and 'y'" if isinstance(error, (KeyError, TypeError)) else error
        )
        raise ConfigError(f"data.root: {path} can't be read: {reason}") from error


def _unpickle(npy: bytes) -> Any:
    """The one object in a 0-dimensional ``.npy`` of dtype object."""
    stream = io.BytesIO(npy)
    version = np.lib.format.read_magic(stream)
    readers: dict[tuple[int, int], Callable[[Any], Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, _, dtype = readers[version](stream)
    if not dtype.hasobject or shape != ():
        raise TypeError(f"an array of {dtype} {shape}")
    return _finished(_ArraysOnly(stream).load())


def as_uint8(images: list[NDArray[Any]], root: Path) -> NDArray[np.uint8]:
    """All clients' images as one (n, H, W, C) of 8 bits, from bytes or from floats in [-1, 1] or [0, 1].

    Floats are rounded to the nearest of 256 levels, which is exact for images that were 8 bits before they were scaled.
    """
    shapes = {array.shape[1:] for array in images}
    if len(shapes) != 1 or len(shape := shapes.pop()) not in (2, 3):
        raise ConfigError(f"data.root: images in {root} differ in shape or are no images: {sorted(map(str, shapes))}")
    whole = np.concatenate(images)
    whole = whole[..., None] if whole.ndim == 3 else whole
    if whole.shape[3] not in (1, 3) and whole.shape[1] in (1, 3):
        whole = whole.transpose(0, 2, 3, 1)
    if whole.shape[3] not in (1, 3):
        raise ConfigError(f"data.root: images in {root} have shape {shape}; they need 1 or 3 channels")
    if whole.dtype == np.uint8:
        return np.ascontiguousarray(whole)
    low, high = float(whole.min()), float(whole.max())
    if not (np.isfinite([low, high]).all() and low >= -1.001 and high <= 255):
        raise ConfigError(
            f"data.root: images in {root} go from {low:g} to {high:g}; raysim knows [-1, 1], [0, 1] and 0 to 255"
        )
    if low < 0 and high > 1.001:
        raise ConfigError(f"data.root: images in {root} go from {low:g} to {high:g}: neither [-1, 1] nor 0 to 255")
    scale, offset = (127.5, 127.5) if low < 0 else (255.0, 0.0) if high <= 1.001 else (1.0, 0.0)
    return np.ascontiguousarray(np.clip(np.rint(whole * scale + offset), 0, 255).astype(np.uint8))
