"""Whatever the bytes of data and weights: they are read, or a ``ConfigError`` names the file. No traceback, no bomb."""

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import timm
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torchvision.datasets import CIFAR10

from raysim.config.sections.data import DataConfig
from raysim.data import downloads
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError
from raysim.models.weights import load_weights

from client_files import save_clients
from hostile import checked, damaged, little_memory, told


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("properties")


def npz(compress=False, **arrays):
    stream = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(stream, **arrays)
    return stream.getvalue()


IMAGES, LABELS = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4), np.array([0, 1, 2, 0, 1, 2])
SPLIT = {"train_0": np.array([0, 1]), "test_0": np.array([2]), "train_1": np.array([3, 4]), "test_1": np.array([5])}
MEDICAL = {
    f"{s}_{what}": a
    for s in ("train", "val", "test")
    for what, a in (("images", IMAGES), ("labels", LABELS[:, None] % 2))
}
FILES = {
    "npz": {"images": IMAGES, "labels": LABELS, "domains": np.array(list("ababab"))},
    "partition": SPLIT,
    "pneumoniamnist": MEDICAL,
    "federated_npz": {"data": {"x": np.zeros((2, 3, 4, 4), np.float32), "y": np.array([0, 1])}},
}


@pytest.fixture(scope="module")
def read(folder):
    """Read bytes as the file of one of the kinds above."""
    save_clients(folder / "clients")
    (folder / "good.npz").write_bytes(npz(**FILES["npz"]))

    def read(kind, content, pickles=True):
        name = {"npz": "a.npz", "partition": "split.npz", "federated_npz": "clients/train/1.npz"}.get(
            kind, f"{kind}.npz"
        )
        (folder / name).write_bytes(content)
        root = {"npz": folder / name, "partition": folder / "good.npz", "federated_npz": folder / "clients"}.get(
            kind, folder
        )
        raw = {"name": "npz" if kind == "partition" else kind, "root": str(root), "num_clients": 2}
        if kind == "federated_npz":
            raw["allow_legacy_pickle"] = pickles
        if kind == "partition":
            raw["partition"] = {"name": "file", "path": str(folder / name)}
        config = DataConfig.model_validate(raw)
        with told(folder / name, folder / "clients"):
            dataset = load_dataset(config, 4)
            assert dataset.images.dtype == np.uint8
            assert dataset.images.ndim == 4
            assert dataset.labels.shape == (len(dataset.images),)
            assert 0 <= dataset.labels.min() <= dataset.labels.max() < dataset.num_classes
            if kind == "partition":
                make_partition(config, dataset, seed=0)

    return read


kinds = pytest.mark.parametrize("kind", FILES)


@kinds
@checked
@given(st.data())
def test_damaged_npz(read, kind, data):
    valid = [npz(**FILES[kind]), npz(compress=True, **FILES[kind])]
    read(kind, data.draw(st.one_of(st.binary(max_size=100), damaged(valid))), pickles=data.draw(st.booleans()))


DTYPES = [
    "|u1",
    "<i8",
    ">i4",
    "<u8",
    "<f4",
    "<f8",
    "|b1",
    "<c8",
    "<U3",
    "<U0",
    "|S2",
    "|V8",
    "|V0",
    "|O",
    "<M8[s]",
    "<i3",
    "x",
]
DTYPES += [[("a", "<i8")], [("a", "|O")], ("<i8", (2,)), "<U999999999", None]
SHAPES = [
    (6,),
    (6, 4, 4),
    (6, 4, 4, 3),
    (),
    (0,),
    (0, 4, 4),
    (2, 3, 4, 4),
    (6, 1),
    (-1,),
    (2**62,),
    (2**63,),
    (2**40, 2**40),
    6,
]
SHAPES += [(10**9, 10**3), (True,), (1.5,), (2**32, 2**32), (1,) * 40, (1,) * 70, None]


@st.composite
def members(draw, names):
    """Members of an npz whose headers say anything."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in draw(st.lists(st.sampled_from([*names, "other"]), min_size=1, max_size=4, unique=True)):
            header = {"descr": draw(st.sampled_from(DTYPES)), "fortran_order": draw(st.booleans())}
            text = repr({**header, "shape": draw(st.sampled_from(SHAPES))}).encode() + b"\n"
            if draw(st.integers(0, 9)) == 0:
                text = draw(
                    st.sampled_from(
                        [b"{" * 9000, b"(" * 200 + b")" * 200, b"[]", b"", b"1" * 5000, b"__import__('os')"]
                    )
                )
            body = draw(st.binary(max_size=16)) * draw(st.sampled_from([1, 6, 48]))
            content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body
            archive.writestr(f"{name}.npy", content, draw(st.sampled_from([0, 8, 12, 14])))
    return stream.getvalue()


@kinds
@checked
@given(st.data())
def test_npz_with_any_arrays(read, kind, data):
    read(kind, data.draw(members(list(FILES[kind]))))


ARRAYS = [
    IMAGES,
    IMAGES[..., None],
    IMAGES.astype(">f8"),
    LABELS,
    LABELS.astype(np.uint64) + 2**63,
    LABELS.astype(object),
]
ARRAYS += [
    LABELS[:0],
    LABELS.astype(np.int8),
    LABELS / 0.5,
    LABELS * np.nan,
    LABELS > 0,
    LABELS.astype(str),
    LABELS * 1j,
]
ARRAYS += [LABELS.astype("M8[s]"), LABELS[:, None], np.array(0), np.zeros((6, 0, 4), np.uint8), np.zeros(6, "U0")]
ARRAYS += [
    np.zeros(6, "V2"),
    np.zeros(6, "i4,f4"),
    np.full(24, 255, np.uint8).view("<U1"),
    np.zeros((6, 4, 4, 3), np.uint8),
]
ARRAYS += [np.full((6, 1, 4, 4), np.inf, np.float16), np.full((6, 1, 4, 4), 60_000, np.float16)]


@kinds
@checked
@given(st.data())
def test_npz_with_arrays_of_other_kinds(read, kind, data):
    names = list(FILES[kind])
    inside = ["x", "y"] if kind == "federated_npz" else names
    with np.errstate(all="ignore"):
        changed = {
            name: ARRAYS[data.draw(st.integers(0, len(ARRAYS) - 1))] for name in inside if data.draw(st.booleans())
        }
        content = (
            {"data": {**FILES[kind]["data"], **changed}} if kind == "federated_npz" else {**FILES[kind], **changed}
        )
        read(kind, npz(**content))


@kinds
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("size", [200, 2**60])
def test_zip_bombs(read, kind, method, size):
    """32 MB of zeros, packed to a thousandth and less, which claim to be a few bytes, or an exabyte."""
    header, stream = {"descr": "|u1", "fortran_order": False, "shape": (2**25,)}, io.BytesIO()
    if kind == "federated_npz":
        header |= {"descr": "|O", "shape": ()}
    with zipfile.ZipFile(stream, "w", method) as archive:
        start = io.BytesIO()
        np.lib.format.write_array_header_1_0(start, header)
        archive.writestr(f"{next(iter(FILES[kind]))}.npy", start.getvalue() + bytes(2**25))
        archive.infolist()[0].file_size = size
    content = stream.getvalue()
    with little_memory():
        read(kind, content)


@checked
@given(st.one_of(st.binary(max_size=100), st.data()))
def test_cifar_of_any_bytes(folder, data):
    """Even if the checksums did not catch it."""
    kind = CIFAR10
    batch = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [3, 9]}, 2)
    files = {name: batch for name, _ in [*kind.train_list, *kind.test_list]}
    files[kind.meta["filename"]] = pickle.dumps({"label_names": list("abcdefghij")}, 2)
    if not isinstance(data, bytes):
        changed = data.draw(st.sampled_from(list(files)))
        files[changed] = data.draw(damaged([files[changed]]))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{kind.base_folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    whole = (
        data
        if isinstance(data, bytes)
        else data.draw(st.one_of(st.just(stream.getvalue()), damaged([stream.getvalue()])))
    )
    (folder / kind.filename).write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch, told("data.root: cifar10", "data.name: cifar10"):
        patch.setattr("torchvision.datasets.utils.download_url", lambda *_: None)
        patch.setattr(
            downloads, "_damaged", lambda files, sums: next((name for name in sums if name not in files), None)
        )
        load_dataset(DataConfig(name="cifar10", root=str(folder)), 32)


# Images


@checked
@given(st.data())
def test_images_of_any_bytes(folder, data):
    forms = []
    for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        stream = io.BytesIO()
        Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(stream, form)
        forms.append(stream.getvalue())
    path = folder / "images" / "photo" / "cat" / "a.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=100), damaged(forms))))
    with told(path, folder / "images"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_dataset(DataConfig(name="image_folder", root=str(folder / "images")), 16)


@pytest.mark.parametrize("side", [14_000, 50_000])
def test_an_image_of_gigabytes_in_a_few_bytes(tmp_path, side):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path = tmp_path / "photo" / "cat" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))
    with pytest.raises(ConfigError, match=r"a\.png is not a readable image"):
        load_dataset(DataConfig(name="image_folder", root=str(tmp_path)), 16)


# Names of files


@checked
@given(
    st.one_of(
        st.text(min_size=1, max_size=20), st.sampled_from(["~nobody-here/x", "\0", "x" * 5000, "x/" * 3000, "\udcff"])
    )
)
def test_any_name_of_a_file(folder, name):
    assume(not name.startswith("/"))
    for raw in ({"name": "npz"}, {"name": "federated_npz"}, {"name": "image_folder"}):
        with pytest.MonkeyPatch.context() as patch, told("data.root"):
            patch.chdir(folder)
            try:
                config = DataConfig.model_validate({**raw, "root": name})
            except ValueError:  # half characters, which pydantic tells in its own way and YAML has no more
                assume(False)
            load_dataset(config, 16)


# Weights

MODEL = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "img_size": 8}


@pytest.fixture(scope="module")
def model():
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, **MODEL)


@checked
@given(st.data())
def test_weights_of_any_bytes(folder, model, data):
    path, state = folder / "a.safetensors", model.state_dict()
    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    if data.draw(st.booleans()):
        for name in data.draw(st.lists(st.sampled_from(list(state)), max_size=2)):
            field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
            header[name][field] = data.draw(
                st.sampled_from(
                    ["F64", "I64", "C64", "F4", "F8_E4M3", "no", None, [], [0], [2**64], [2**63, 2], [-1, 8]]
                )
            )
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + content[8 + size :]
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=64), st.just(content), damaged([content]))))
    with told(path):
        load_weights(model, path, optional=set())


KINDS = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.bool,
    torch.complex64,
    torch.uint8,
]
KINDS += [torch.float8_e4m3fn]


@checked
@given(st.data())
def test_weights_of_other_kinds_and_shapes(folder, model, data):
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = ["pos_embed", "patch_embed.proj.weight", "cls_token", "head.weight", "norm.bias"]
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3)):
        shape = list(state[name].shape)
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, len(shape) - 1)) if shape else 0
            shape[at : at + 1] = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 17]), max_size=2))
        state[name] = torch.zeros(shape, dtype=data.draw(st.sampled_from(KINDS)))
    path = folder / "b.safetensors"
    path.write_bytes(save(state))
    with told("model.weights"):
        load_weights(model, path, optional=set())
