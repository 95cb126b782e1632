"""Splits of PFLlib's format, made as its own code makes them, and files that are up to no good."""

import pickle

import numpy as np
import pytest

from raysim.config.sections.data import DataConfig
from raysim.data.federated_npz import as_uint8
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError

from client_files import save_clients


def config(root, **keys):
    raw = {"name": "federated_npz", "root": str(root), "num_clients": 2, "allow_legacy_pickle": True}
    return DataConfig.model_validate(raw | keys)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.astype(np.float32) / 127.5 - 1,
        lambda x: x.astype(np.float32) / 255,
        lambda x: x,
        lambda x: x.transpose(0, 2, 3, 1),
    ],
)
def test_images_labels_and_split_come_back_as_they_were(tmp_path, make):
    truth = save_clients(tmp_path, make=make)
    dataset = load_dataset(config(tmp_path), 4)
    partition = make_partition(config(tmp_path), dataset, seed=5)
    for client in range(2):
        for of, (x, y) in ((partition.train, truth[2 * client]), (partition.test, truth[2 * client + 1])):
            assert np.array_equal(dataset.images[of(client)], x.transpose(0, 2, 3, 1))
            assert np.array_equal(dataset.labels[of(client)], y)
    assert partition.num_train.tolist() == [3, 4]
    assert dataset.class_names == ("0", "1", "2")


def test_pickles_are_read_only_when_allowed(tmp_path):
    save_clients(tmp_path)
    with pytest.raises(ConfigError, match="data.allow_legacy_pickle: .* Set it to true"):
        load_dataset(config(tmp_path, allow_legacy_pickle=False), 4)
    with pytest.raises(ValueError, match="'allow_legacy_pickle' is an option of 'federated_npz'"):
        DataConfig(name="digits", allow_legacy_pickle=True)


class Evil:
    def __reduce__(self):
        return (open, ("owned", "w"))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Evil(), "open"),
        ({"x": Evil(), "y": [1]}, "open"),
        (np.array([Evil()], object), "open"),
        (pickle.Pickler, "Pickler"),
    ],
)
def test_anything_but_arrays_is_refused_by_name_and_never_called(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    save_clients(tmp_path)
    box = np.empty((), object)
    box[()] = content
    np.savez(tmp_path / "train" / "1.npz", data=box)
    with pytest.raises(ConfigError, match=rf"train/1.npz can't be read: it holds \w+.{named}, and only arrays"):
        load_dataset(config(tmp_path), 4)
    assert not (tmp_path / "owned").exists()


class Calls:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


FIELDS = (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0)


@pytest.mark.parametrize(
    "forged",
    [
        Calls(np.ndarray, ((1,), np.dtype("O"), np.array([0x4141414141414141]))),  # bytes as addresses of objects
        Calls(np.dtype, ("V8",), FIELDS),
        Calls(np.dtype, ("f8",), FIELDS),
        Calls(np.dtype, ("f8",), (3, "|", (np.dtype("f8"), (512,)), None, None, 4096, 1, 0)),  # larger than its buffer
        Calls(np.frombuffer, (b"1234",)),
    ],
)
def test_arrays_can_not_be_forged_to_read_memory(tmp_path, forged):
    save_clients(tmp_path)
    box = np.empty((), object)
    box[()] = {"x": forged, "y": [1]}
    np.savez(tmp_path / "train" / "1.npz", data=box)
    with pytest.raises(ConfigError, match=r"train/1\.npz can't be read"):
        load_dataset(config(tmp_path), 4)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 3, 4, 4)), np.array(["a", "b"])),
        (np.zeros((2, 3, 4, 4)), np.array([None, 1])),
        (None, np.array([0, 1])),
        ("images", np.array([0, 1])),
        (np.zeros((2, 3, 0, 0)), np.array([0, 1])),
        (np.zeros((2, 3, 4, 4), complex), np.array([0, 1])),
        (np.zeros((2, 3, 4, 4), "M8[s]"), np.array([0, 1])),
    ],
)
def test_contents_that_are_no_images_and_labels(tmp_path, x, y):
    save_clients(tmp_path)
    np.savez(tmp_path / "train" / "1.npz", data={"x": x, "y": y})
    with pytest.raises(ConfigError, match=r"train/1\.npz"):
        load_dataset(config(tmp_path), 4)


def test_damaged_files_are_named(tmp_path):
    save_clients(tmp_path)
    path = tmp_path / "test" / "0.npz"
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(good[: rng.integers(len(good))] if rng.random() < 0.3 else good)
        for at in rng.integers(0, max(1, len(bad)), 4) if bad else ():
            bad[at] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            load_dataset(config(tmp_path), 4)
        except ConfigError as error:
            assert "data." in str(error)  # noqa: PT017 - flips in unused bytes do no harm, so an error is not sure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "test" / "1.npz").unlink(), r"data.num_clients: .*test has 1 clients, not 2"),
        (lambda root: (root / "train" / "0.npz").unlink(), "from 0 without gaps: train has"),
        (lambda root: np.savez(root / "train" / "0.npz", data=np.zeros(3)), "no array 'data' with a dict"),
        (lambda root: np.savez(root / "train" / "0.npz", other=np.zeros(3)), "no array 'data' with a dict"),
        (
            lambda root: np.savez(root / "train" / "0.npz", data={"x": np.zeros((2, 3, 4, 4)), "y": np.zeros(3)}),
            r"train/0.npz: images \(2, 3, 4, 4\) and labels \(3,\)",
        ),
        (
            lambda root: np.savez(
                root / "train" / "0.npz", data={"x": np.zeros((2, 3, 4, 4)), "y": np.array([0.5, 1])}
            ),
            "no integers",
        ),
        (
            lambda root: np.savez(root / "test" / "0.npz", data={"x": np.zeros((2, 3, 5, 5)), "y": np.array([0, 1])}),
            "differ in shape",
        ),
    ],
)
def test_folders_that_do_not_fit(tmp_path, change, message):
    save_clients(tmp_path)
    change(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_dataset(config(tmp_path), 4)


def test_ranges_of_images(tmp_path):
    image = np.array([-1.0, 0, 1]).reshape(1, 1, 3)
    pixels, doubtful = as_uint8([image, image], tmp_path)
    assert pixels.ravel().tolist() == [0, 128, 255] * 2
    assert doubtful == []
    for low, high in ((-2.5, 2.0), (-1.0, 200.0), (0.0, np.nan), (0.0, 300.0)):
        with pytest.raises(ConfigError, match="images of client 0 in .* go from"):
            as_uint8([np.array([low, high]).reshape(1, 1, 2)] * 2, tmp_path)


def test_clients_of_several_ranges_are_read_each_by_its_own_and_counted(tmp_path):
    made = iter([*[lambda x: x.astype(np.float32) / 127.5 - 1] * 2, *[lambda x: x.astype(np.float32) / 255] * 2])
    truth = save_clients(tmp_path, make=lambda x: next(made)(x))
    dataset = load_dataset(config(tmp_path), 4)
    assert np.array_equal(dataset.images, np.concatenate([x for x, _ in truth]).transpose(0, 2, 3, 1))
    (note,) = dataset.notes
    assert "differ in range, and are read each by their own: 1 clients [-1, 1] (client 0, …), 1 clients [0, 1]" in note


def test_a_client_whose_files_are_of_two_kinds(tmp_path):
    made = iter([lambda x: x, lambda x: x.astype(np.float32) / 255] * 2)
    truth = save_clients(tmp_path, make=lambda x: next(made)(x))
    dataset = load_dataset(config(tmp_path), 4)
    assert np.array_equal(dataset.images, np.concatenate([x for x, _ in truth]).transpose(0, 2, 3, 1))
    assert len(dataset.notes) == 1


def test_images_that_are_nearly_black_are_told(tmp_path):
    save_clients(tmp_path, make=lambda x: (x // 16).astype(np.float32))
    (note,) = load_dataset(config(tmp_path), 4).notes
    assert "no pixel is above 15 of 255, so images are nearly black: multiply them by 17?" in note


def test_it_has_its_own_split(tmp_path):
    assert config(tmp_path).partition.name == "own"
    with pytest.raises(ValueError, match="comes with its split"):
        config(tmp_path, partition={"name": "iid"})
    with pytest.raises(ValueError, match="comes with its split"):
        DataConfig.model_validate({"name": "digits", "partition": {"name": "own"}})
    with pytest.raises(ValueError, match="'subset' is not used"):
        config(tmp_path, subset=3)
