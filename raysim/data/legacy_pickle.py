"""Pickles of arrays, read without unpickling them: CIFAR's batches, and the splits that PFLlib writes.

Unpickling a file does whatever the file says. Here the standard library's disassembler cuts it into opcodes, and those
that make arrays, dicts, lists, tuples, numbers and strings are followed; anything else is refused by name, and never called.
Not even numpy's own classes are handed out, since a pickle can make them read any memory: arrays are rebuilt from their
bytes. And they take no more memory than the length of the file allows, however often it refers to the same bytes.
"""

from __future__ import annotations

import math
import pickletools
import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",  # an argument of _reconstruct
    ("numpy", "dtype"): "dtype",
    ("numpy.core.multiarray", "_reconstruct"): "reconstruct",
    ("numpy.core.multiarray", "scalar"): "scalar",
    ("numpy.core.numeric", "_frombuffer"): "frombuffer",
    ("_codecs", "encode"): "latin1",  # how protocol 2 writes an array's bytes
}

_READ = "arrays, dicts, lists, numbers and strings are read"

_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class _Global(NamedTuple):
    """A name that numpy writes, replaced by a word of our own, so that there is nothing to call."""

    word: str


class _Dtype:
    """A plain dtype as a pickle describes it; never numpy's own object, whose state a file could forge."""

    def __init__(self, spec: object) -> None:
        if not (isinstance(spec, str) and re.fullmatch(r"b1|[iu][1248]|f(2|4|8|16)|O\d?|[SU]\d{1,6}", spec)):
            raise ValueError(f"it holds an array of dtype {spec!r:.80}")
        self.plain = np.dtype(spec)

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise ValueError("it holds an array of a dtype that is not plain")
        self.plain = self.plain.newbyteorder(state[1])


class _Array:
    """An array, or a placeholder until it is built; an array of objects is a list of them."""

    def __init__(self, value: NDArray[Any] | list[Any] | None = None) -> None:
        self.value = value


def read_pickle(content: bytes) -> Any:
    """The one object of a pickle: arrays of numbers or strings, dicts, lists, tuples, numbers, strings.

    An array of objects, or a list or tuple of numbers or of arrays of one shape, becomes an array; deeper nesting is
    left as it is.

    Raises:
        ValueError: it is damaged, or holds anything else.
    """
    try:
        return _Reader(content).read()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError("it is a damaged pickle") from error


class _Reader:
    """A stack machine over the opcodes that ``read_pickle`` follows."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._budget = 16 * len(content)

    def read(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self._content):
            self._do(opcode.name, argument)
        result = self._stack.pop()
        if isinstance(result, _Array) and isinstance(result.value, list) and len(result.value) == 1:
            result = result.value[0]  # how numpy saves a dict
        return {k: self._finished(v) for k, v in result.items()} if isinstance(result, dict) else self._finished(result)

    def _do(self, name: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        if name in _CONSTANTS:
            stack.append(argument)
            return
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "MARK":
                self._marks.append(len(stack))
            case "POP" if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._items()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(self._items()))
            case "LIST":
                stack.append(self._items())
            case "DICT":
                stack.append(_set({}, self._items()))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self._items()
                self._top(list).extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set(self._top(dict), [key, value])
            case "SETITEMS":
                items = self._items()
                _set(self._top(dict), items)
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_global(module, attribute))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(self._call(function, arguments))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                self._build(target, state)
            case _:
                raise ValueError(f"it has the opcode {name}, and only {_READ}")

    def _items(self) -> list[Any]:
        """What was pushed since the last mark."""
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"it fills a {type(self._stack[-1]).__name__} like a {kind.__name__}")
        return self._stack[-1]

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise ValueError("it repeats its contents to take far more memory than the file is long")

    def _call(self, function: object, arguments: object) -> Any:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError(f"it calls a {type(function).__name__}")
        match function.word, arguments:
            case "dtype", (spec, *_):
                return _Dtype(spec)
            case "reconstruct", (_Global("ndarray"), *_):
                return _Array()
            case "reconstruct", _:
                raise ValueError("it holds an array of a class of its own")
            case "frombuffer", (content, dtype, shape, order):
                return _Array(self._array(content, dtype, shape, order))
            case "scalar", (_Dtype(plain=plain) as dtype, content) if not plain.hasobject:
                return np.asarray(self._array(content, dtype, (), "C")).item()
            case "latin1", (str(text), "latin1"):
                self._spend(len(text))
                return text.encode("latin1")
        raise ValueError(f"it has other arguments for {function.word} than numpy writes")

    def _build(self, target: object, state: object) -> None:
        if isinstance(target, _Dtype):
            target.build(state)
        elif isinstance(target, _Array) and isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, fortran, content = state
            target.value = self._array(content, dtype, shape, "F" if fortran else "C")
        else:
            raise ValueError(f"it sets the state of a {type(target).__name__}")

    def _array(self, content: object, dtype: object, shape: object, order: object) -> NDArray[Any] | list[Any]:
        if (
            not isinstance(dtype, _Dtype)
            or not isinstance(shape, tuple)
            or not all(type(n) is int and n >= 0 for n in shape)
        ):
            raise ValueError("it holds an array whose shape or dtype is invalid")
        if dtype.plain.hasobject:
            if not isinstance(content, list) or len(content) != math.prod(shape) or len(shape) > 1:
                raise ValueError("it holds an array of objects that is no list of them")
            return content
        if isinstance(content, str):  # as Python 2 wrote bytes
            self._spend(len(content))
            content = content.encode("latin1")
        if not isinstance(content, (bytes, bytearray)):
            raise ValueError("it holds an array whose content is no bytes")
        return np.frombuffer(content, dtype.plain).reshape(shape, order="F" if order == "F" else "C")

    def _finished(self, value: Any) -> Any:
        """The arrays inside ``_Array`` placeholders; lists of numbers or arrays become arrays, too."""
        if isinstance(value, _Array):
            value = value.value
        if not isinstance(value, (list, tuple)) or not value:
            return value
        items = [item.value if isinstance(item, _Array) else item for item in value]
        arrays = [item for item in items if isinstance(item, np.ndarray)]
        if all(isinstance(item, (int, float)) for item in items):
            self._spend(8 * len(items))
        elif len(arrays) == len(items):
            if len({(array.shape, array.dtype) for array in arrays}) > 1:
                raise ValueError("it holds a list of arrays that differ in shape or dtype")
            self._spend(len(arrays) * arrays[0].nbytes)
        else:
            return value
        return np.asarray(items)


def _global(module: object, name: object) -> _Global:
    known = _GLOBALS.get((str(module).replace("numpy._core", "numpy.core"), str(name)))
    if known is None:
        raise ValueError(f"it holds {module!s:.80}.{name!s:.80}, and only {_READ}")
    return _Global(known)


def _set(target: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):  # a tuple could be one whose hash takes for ever
            raise ValueError("it holds a dict with a key that is no string")
        target[key] = value
    return target
