import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from raysim.config.sections.data import DataConfig
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError


def load(**keys):
    return load_dataset(DataConfig.model_validate(keys), image_size=16)


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


IMAGES = np.arange(6 * 4 * 4, dtype=np.uint8).reshape(6, 4, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_digits():
    digits = load(name="digits")
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert (digits.images.max(), digits.num_classes, digits.domains) == (255, 10, None)


def test_rotated_digits_are_the_same_images_in_four_equal_domains():
    plain, rotated = load(name="digits"), load(name="digits", rotated_domains=True)
    assert rotated.domain_names == ("0°", "90°", "180°", "270°")
    for domain in range(4):
        i = int(np.flatnonzero(rotated.domains == domain)[5])
        assert np.array_equal(rotated.images[i], np.rot90(plain.images[i], domain))
    per_class = np.stack([np.bincount(rotated.labels[rotated.domains == d], minlength=10) for d in range(4)])
    assert (np.ptp(per_class, axis=0) <= 1).all()


@pytest.mark.parametrize("size", [400, 450, 898])
def test_subset_keeps_the_domains_of_every_class_in_proportion(size):
    digits = load(name="digits", rotated_domains=True, subset=size)
    counts = np.bincount(digits.labels * 4 + digits.domains, minlength=40).reshape(10, 4)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 2


def test_subset_keeps_the_classes_in_proportion_and_draws_nothing():
    first, again = load(name="digits", subset=200), load(name="digits", subset=200)
    assert first.digest == again.digest
    assert abs(len(first.labels) - 200) <= 5
    counts = np.bincount(first.labels)
    assert counts.min() >= 19
    with pytest.raises(ConfigError, match="1798 samples asked, the data set has 1797"):
        load(name="digits", subset=1798)


def test_npz_with_domains(tmp_path):
    path = save(tmp_path / "a.npz", images=IMAGES, labels=LABELS, domains=np.array(list("ababab")))
    dataset = load(name="npz", root=path)
    assert dataset.images.shape == (6, 4, 4, 1)
    assert np.array_equal(dataset.images[..., 0], IMAGES)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert dataset.domain_names == ("a", "b")
    assert dataset.domains.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, "has no array labels"),
        ({"images": IMAGES.astype(float), "labels": LABELS}, r"are float64 \(6, 4, 4\), not uint8"),
        ({"images": np.zeros((6, 4, 4, 5), np.uint8), "labels": LABELS}, "have 5 channels"),
        ({"images": IMAGES, "labels": LABELS[:5]}, r"labels of .* are int64 \(5,\), not integers \(6,\)"),
        ({"images": IMAGES, "labels": LABELS - 1}, "out of range: they go from -1 to"),
        (
            {"images": IMAGES, "labels": np.array([0, 1, 2, 0, 1, 900])},
            "go up to 900, but no sample has 3, 4, .* out of range",
        ),
        ({"images": IMAGES, "labels": LABELS, "domains": LABELS[:2]}, r"domains of .* have shape \(2,\)"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "damaged or not an npz of plain arrays"),
    ],
)
def test_wrong_npz(tmp_path, arrays, message):
    with pytest.raises(ConfigError, match=f"data.root: .*{message}"):
        load(name="npz", root=save(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("damage", ["truncate", "flip", "text"])
def test_corrupt_npz(tmp_path, damage):
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path, images=np.random.default_rng(0).integers(0, 255, (50, 8, 8), np.uint8), labels=np.arange(50) % 2
    )
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 3] ^= 0xFF
    else:
        data = bytearray(b"not an archive")
    path.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="data.root: .*a.npz is damaged or not an npz"):
        load(name="npz", root=str(path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "npz", "root": "none.npz"}, "there is no file none.npz; it should be an npz with images"),
        ({"name": "npz"}, "needs the path of an npz"),
        ({"name": "image_folder", "root": "none"}, "none is not a folder with <domain>/<class>"),
        ({"name": "pneumoniamnist", "root": __file__}, "must be a folder for pneumoniamnist"),
        ({"name": "cifar1000"}, "there is no data set 'cifar1000'; did you mean 'cifar100'"),
        ({"name": "chestmnist"}, "there is no data set 'chestmnist'"),  # multi-label
    ],
)
def test_missing_data(keys, message):
    with pytest.raises(ConfigError, match=message):
        load(**keys)


def test_what_can_not_be_downloaded_says_where_to_get_it(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", offline)
    with pytest.raises(ConfigError, match=r"cifar-100-python\.tar\.gz from https://www\.cs\.toronto\.edu"):
        load(name="cifar100", root=str(tmp_path))
    with pytest.raises(ConfigError, match=r"organamnist\.npz is not in .* Get it from https://zenodo\.org"):
        load(name="organamnist", root=str(tmp_path))


def test_medmnist_pools_its_three_splits(tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for split, n in (("train", 5), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (n, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    dataset = load(name="pneumoniamnist", root=str(tmp_path))
    assert dataset.images.shape == (12, 28, 28, 1)
    assert np.array_equal(dataset.images[5:8, :, :, 0], arrays["val_images"])
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1]
    assert dataset.class_names == ("normal", "pneumonia")
    (tmp_path / "pneumoniamnist.npz").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"pneumoniamnist\.npz is damaged"):
        load(name="pneumoniamnist", root=str(tmp_path))


def pickled(data, **more):
    """A CIFAR batch as Python 2 wrote it: protocol 2, the array's bytes and all strings as byte strings."""
    out = b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    out += b"(K\x01K" + bytes([len(data)]) + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    out += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", data.size)
    return out + data.tobytes() + b"tb" + entries(more) + b"u."


def entries(lists):
    def one(value):
        return b"K" + bytes([value]) if isinstance(value, int) else b"U" + bytes([len(value)]) + value.encode()

    return b"".join(one(key) + b"]q\x02(" + b"".join(map(one, value)) + b"e" for key, value in lists.items())


def cifar(monkeypatch, kind, change=None):
    """Tiny files of CIFAR by name, and torchvision's list of checksums made to fit them; ``change``: later, to one file."""
    rng, label = np.random.default_rng(0), "labels" if kind is CIFAR10 else "fine_labels"
    names = [name for name, _ in [*kind.train_list, *kind.test_list]]
    images = {name: rng.integers(0, 255, (2, 3072), np.uint8) for name in names}
    files = {name: pickled(images[name], **{label: [3, 9], "filenames": ["a.png", "b.png"]}) for name in names}
    files[kind.meta["filename"]] = b"\x80\x02}q\x01(" + entries({kind.meta["key"]: list("abcdefghij")}) + b"u."
    if change is not None:
        files[names[0]] = change
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name, _ in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[name, sums[name]] for name, _ in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})
    return files, np.concatenate(list(images.values()))


def archive(monkeypatch, kind, root, files, *more):
    """The tar.gz of these files, and before and after them members that should not be there."""

    def add(tar, member, content=b""):
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))

    with tarfile.open(root / kind.filename, "w:gz") as tar:
        for name, content in [*reversed(files.items())]:  # in any order
            add(tar, tarfile.TarInfo(f"{kind.base_folder}/{name}"), content)
        for member in more:
            add(tar, member, b"" if member.type != tarfile.REGTYPE else b"owned")
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5((root / kind.filename).read_bytes()).hexdigest())


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_pools_train_and_test_from_its_own_format(tmp_path, monkeypatch, kind, packed):
    files, images = cifar(monkeypatch, kind)
    if packed:
        archive(monkeypatch, kind, tmp_path, files)
    else:
        (tmp_path / kind.base_folder).mkdir()
        for name, content in files.items():
            (tmp_path / kind.base_folder / name).write_bytes(content)
    dataset = load(name=kind.__name__.lower(), root=str(tmp_path))
    assert np.array_equal(dataset.images, images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert dataset.labels.tolist() == [3, 9] * (len(images) // 2)
    assert dataset.class_names == tuple("abcdefghij")
    assert packed == (not (tmp_path / kind.base_folder).exists())  # nothing was unpacked


def members(target):
    """Members that write outside of their folder where an archive is unpacked without care."""
    for name in (f"{CIFAR10.base_folder}/../../owned", str(target), "../owned"):
        yield tarfile.TarInfo(name)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
        for name in (f"{CIFAR10.base_folder}/data_batch_1", f"{CIFAR10.base_folder}/link"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(target)
            yield member
    yield tarfile.TarInfo(f"{CIFAR10.base_folder}/link/owned")


def test_an_archive_writes_nothing_anywhere(tmp_path, monkeypatch):
    root, target = tmp_path / "a" / "b", tmp_path / "owned"
    root.mkdir(parents=True)
    files, _ = cifar(monkeypatch, CIFAR10)
    archive(monkeypatch, CIFAR10, root, files, *members(target))
    assert len(load(name="cifar10", root=str(root)).labels) == 12
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()] == [root / CIFAR10.filename]
    link = tarfile.TarInfo(f"{CIFAR10.base_folder}/data_batch_1")
    link.type, link.linkname = tarfile.SYMTYPE, f"{CIFAR10.base_folder}/data_batch_2"
    archive(monkeypatch, CIFAR10, root, {n: c for n, c in files.items() if n != "data_batch_1"}, link)
    with pytest.raises(ConfigError, match="data_batch_1 is missing"):
        load(name="cifar10", root=str(root))


def test_cifar_of_another_checksum_or_with_a_call_in_it_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", lambda *_: 1 / 0)
    files, _ = cifar(monkeypatch, CIFAR10)
    archive(monkeypatch, CIFAR10, tmp_path, files)
    with (tmp_path / CIFAR10.filename).open("ab") as file:
        file.write(b"more")
    with pytest.raises(ConfigError, match="cifar10 is not in"):
        load(name="cifar10", root=str(tmp_path))
    call = b"\x80\x02cposix\nsystem\nU\x0btouch owned\x85R."
    files, _ = cifar(monkeypatch, CIFAR10, change=call)
    archive(monkeypatch, CIFAR10, tmp_path, files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"cifar10 in .* can't be read: it holds posix\.system, and only arrays"):
        load(name="cifar10", root=str(tmp_path))
    assert not (tmp_path / "owned").exists()


def write_image(path, size, value=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def test_image_folder_keeps_images_of_one_size_as_they_are(tmp_path):
    for d, domain in enumerate(("photo", "sketch")):
        for c, name in enumerate(("cat", "dog", "owl")):
            write_image(tmp_path / domain / name / "a.png", (10, 12), value=10 * d + c)
    dataset = load(name="image_folder", root=str(tmp_path))
    assert dataset.images.shape == (6, 12, 10, 3)
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.domains.tolist() == [0, 0, 0, 1, 1, 1]
    assert (dataset.class_names, dataset.domain_names) == (("cat", "dog", "owl"), ("photo", "sketch"))


def test_image_folder_resizes_images_of_several_sizes(tmp_path):
    write_image(tmp_path / "photo" / "cat" / "a.png", (10, 12))
    write_image(tmp_path / "photo" / "dog" / "b.jpg", (30, 20))
    assert load(name="image_folder", root=str(tmp_path)).images.shape == (2, 16, 16, 3)


def test_wrong_image_folders(tmp_path):
    archive = tmp_path / "data.tar"
    archive.write_bytes(b"")
    with pytest.raises(ConfigError, match="unpack the archive first"):
        load(name="image_folder", root=str(archive))
    write_image(tmp_path / "photo" / "cat" / "a.png", (4, 4))
    write_image(tmp_path / "sketch" / "dog" / "a.png", (4, 4))
    with pytest.raises(
        ConfigError, match="photo and sketch differ in classes: only in photo: cat; only in sketch: dog"
    ):
        load(name="image_folder", root=str(tmp_path))
    (tmp_path / "sketch" / "dog").rename(tmp_path / "sketch" / "cat")
    (tmp_path / "sketch" / "cat" / "a.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"a\.png is not a readable image"):
        load(name="image_folder", root=str(tmp_path))
