"""Pickles of arrays come back as they were; every other pickle is refused, and none is unpickled."""

import pickle
import pickletools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysim.data.legacy_pickle import read_pickle

from hostile import checked, little_memory

IMAGES, LABELS = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4), np.array([0, 1, 2, 0, 1, 2])
ARRAYS = [
    IMAGES,
    IMAGES.T,
    LABELS.astype(">i2"),
    LABELS.astype("S3"),
    LABELS.astype(str),
    LABELS / 3,
    np.array(3),
]


VALUES = st.one_of(
    *(st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5), st.none(), st.booleans()),
    *(st.integers(0, len(ARRAYS) - 1).map(ARRAYS.__getitem__), st.lists(st.integers(-9, 9))),
    *(st.lists(st.text(max_size=2)), st.lists(st.just(IMAGES), min_size=1, max_size=3), st.just(tuple(LABELS))),
)


@checked
@given(st.dictionaries(st.text(max_size=5), VALUES), st.integers(0, 5))
def test_arrays_come_back_as_they_were(value, protocol):
    found = read_pickle(pickle.dumps(value, protocol))
    assert list(found) == list(value)
    for key, item in value.items():
        assert np.array_equal(found[key], item)
        if isinstance(item, np.ndarray):
            assert (found[key].dtype, found[key].shape) == (item.dtype, item.shape)


def test_bytes_and_arrays_of_objects():
    assert read_pickle(pickle.dumps({"a": b"x", "b": bytearray(b"y")}, 5)) == {"a": b"x", "b": bytearray(b"y")}
    objects = np.empty(2, object)
    objects[:] = [1, 2]
    assert read_pickle(pickle.dumps({"y": objects}))["y"].tolist() == [1, 2]


@checked
@given(st.data())
def test_any_opcodes_in_any_order(data):
    codes = [op.code.encode("latin1") for op in pickletools.opcodes]
    argument = st.one_of(
        st.binary(max_size=5), st.sampled_from([b"\1\0\0\0a", b"\1a", b"os\nsystem\n", b"numpy\ndtype\n", b"1\n"])
    )
    piece = st.one_of(st.sampled_from(codes), st.tuples(st.sampled_from(codes), argument).map(b"".join))
    only_plain(b"".join(data.draw(st.lists(piece, max_size=30))) + b".")


@checked
@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5))
def test_flipped_bytes(protocol, flips):
    content = bytearray(pickle.dumps({"data": {"x": IMAGES, "y": [1, 2]}, "x": LABELS}, protocol))
    for at, byte in flips:
        content[at % len(content)] = byte
    only_plain(bytes(content))


def only_plain(content):
    """It is refused, or gives nothing that could be called."""

    def look(value, seen):
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, (list, tuple, dict)):
            for item in value.values() if isinstance(value, dict) else value:
                look(item, seen)
        elif isinstance(value, np.ndarray):
            assert value.dtype.kind in "biufSUO"
        elif type(value).__module__ != "raysim.data.legacy_pickle":
            assert isinstance(value, (type(None), bool, int, float, str, bytes, bytearray))

    with little_memory():
        try:
            look(read_pickle(content), set())
        except ValueError as error:
            assert str(error)  # noqa: PT017


class Calls:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Plain:
    pass


def raw(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


DTYPE = b"cnumpy\ndtype\n(X\x02\0\0\0u1tR"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0tR"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'touch owned'\ntR.", "holds os.system"),
        (b"(S'touch owned'\nios\nsystem\n.", "the opcode INST"),
        (b"(cos\nsystem\nS'touch owned'\no.", "holds os.system"),
        (raw(b"c__builtin__\neval\n(X\x01\0\0\x001tR"), "holds __builtin__.eval"),
        (pickle.dumps(Calls(eval, ("1",))), "holds builtins.eval"),
        (pickle.dumps(Calls(getattr, (1, "real"))), "holds builtins.getattr"),
        (pickle.dumps(Calls(np.load, ("owned", None, True))), r"holds numpy(\.\w+)*\.load"),
        (pickle.dumps(Calls(np.fromfile, ("/etc/passwd",))), "fromfile"),
        (pickle.dumps(Calls(np.memmap, ("/etc/passwd",))), "holds numpy.memmap"),
        (pickle.dumps(Calls(pickle.loads, (b"N.",))), "holds _pickle.loads"),
        (pickle.dumps({"x": [{"y": (Calls(eval, ("1",)),)}]}), "holds builtins.eval"),
        (pickle.dumps(np.array([Calls(eval, ("1",))], object)), "holds builtins.eval"),
        (pickle.dumps(Plain(), 2), "holds copy_reg.__newobj__|holds .*Plain|the opcode"),
        (pickle.dumps({1}, 4), "the opcode EMPTY_SET"),
        (pickle.dumps(1j), "holds builtins.complex"),
        (pickle.dumps(np.ma.masked_array([1])), "MaskedArray|_mareconstruct"),
        (raw(b"\x82\x01"), "the opcode EXT1"),
        (raw(b"X\x01\0\0\0aQ"), "the opcode BINPERSID"),
        (raw(b"\x97"), "the opcode NEXT_BUFFER"),
        (raw(b"cnumpy\ndtype.newbyteorder\n"), "holds numpy.dtype.newbyteorder"),
        (raw(b"]}X\x01\0\0\0aK\x01sb"), "sets the state of a list"),
        (raw(b"cnumpy\ndtype\n}b"), "sets the state of a _Global"),
        (raw(b"cnumpy\nndarray\n(K\x01\x85tR"), "other arguments for ndarray"),
        (raw(DTYPE, b"(K\x03X\x01\0\0\0|NX\x01\0\0\0fNK\x08K\x01K\0tb"), "a dtype that is not plain"),
        (raw(b"cnumpy\ndtype\n(X\x05\0\0\0u1,u1tR"), "an array of dtype 'u1,u1'"),
        (raw(b"cnumpy\ndtype\n(]tR"), r"an array of dtype \[\]"),
        (raw(EMPTY, b"(K\x01K\x09\x85", DTYPE, b"\x89C\x01atb"), "cannot reshape"),
        (raw(EMPTY, b"(K\x01K\x09\x85", DTYPE, b"\x89K\x01tb"), "whose content is no bytes"),
        (raw(EMPTY, b"(K\x01K\x09\x85cnumpy\ndtype\n(X\x02\0\0\0O8tR\x89C\x08AAAAAAAAtb"), "an array of objects"),
        (raw(b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\0\0\0O8tRC\x08AAAAAAAAtR"), "for scalar"),
        (raw(b"c_codecs\nencode\n(X\x01\0\0\0aX\x05\0\0\0utf-7tR"), "other arguments for latin1"),
        (raw(b"}K\x01K\x01s"), "a key that is no string"),
        (raw(b"K\x01]s"), "damaged"),
        (raw(b"K\x01K\x02a"), "fills a int like a list"),
        (raw(b"h\x05"), "damaged"),
        (raw(b"0000"), "damaged"),
        (b"", "exhausted"),
        (b"I" + b"9" * 5000 + b"\n.", "limit|digits"),
    ],
)
def test_attacks_are_refused_by_name_and_never_called(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    with little_memory(), pytest.raises(ValueError, match=message):
        read_pickle(content)
    assert not list(tmp_path.iterdir())


DOUBLED = b"X\x01\0\0\0a" + b"2\x86" * 60  # a tuple of itself twice, 60 times over: 2^60 letters
LONG = b"X" + struct.pack("<I", 10**5) + b"a" * 10**5 + b"\x94"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (raw(b"K\x01r\xff\xff\xff\xff"), None),  # a memo of 2^32 places, of which the unpickler makes an array
        (raw(b"B\xff\xff\xff\x7f"), "expected"),
        (raw(b"\x8e" + struct.pack("<Q", 2**60)), "expected"),
        (raw(b"\x96" + struct.pack("<Q", 2**34)), "expected"),
        (raw(b"\x8b" + struct.pack("<i", 2**31 - 1)), "not enough|expected"),
        (raw(b"}", DOUBLED, b"K\x01s"), "a key that is no string"),  # whose hash would take for ever
        (raw(b"}X\x01\0\0\0x", DOUBLED, b"s"), None),
        (raw(b"]\x942h\0a"), None),  # a list in itself
        (raw(LONG, b"0(" + b"c_codecs\nencode\n(h\0X\x06\0\0\0latin1tR" * 1000, b"l"), "far more memory"),
        (
            raw(
                b"}X\x01\0\0\0x(",
                EMPTY,
                b"(K\x01M\0\x10\x85",
                DTYPE,
                b"\x89B\0\x10\0\0" + bytes(4096),
                b"tb\x94",
                b"h\0" * 10**5,
                b"ls",
            ),
            "far more memory",
        ),
    ],
)
def test_bombs(content, message):
    with little_memory():
        if message is None:
            read_pickle(content)
        else:
            with pytest.raises(ValueError, match=message):
                read_pickle(content)
