"""On parquet files, a folder of images and a saved data set that are made here; nothing is downloaded."""

import datasets
import numpy as np
import pytest
from PIL import Image

from raysim.config.sections.data import DataConfig
from raysim.data import hugging_face
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError

N = 12


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def pixels(i, shape=(8, 10, 3)):
    return np.random.default_rng(i).integers(0, 256, shape, np.uint8)


def table(rows=N, grey=False, **columns):
    images = [Image.fromarray(pixels(i, (8, 10) if grey else (8, 10, 3))) for i in range(rows)]
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])})
    made = datasets.Dataset.from_dict({"img": images, "label": [i % 2 * 2 for i in range(rows)]}, features)
    for name, values in columns.items():
        made = made.add_column(name, values)
    return made


def load(root, **keys):
    return load_dataset(DataConfig(name="huggingface", root=str(root), **keys), 8)


def test_parquet_files_with_splits_and_writers(tmp_path):
    (tmp_path / "data").mkdir()
    writers = [f"writer {i % 4}" for i in range(N)]
    table(writer=writers).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    table(4, writer=writers[:4]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    both = load(tmp_path / "data", domain_column="writer")
    assert both.images.shape == (N + 4, 8, 10, 3)
    assert np.array_equal(both.images[5], pixels(5))
    assert both.class_names == ("cat", "owl")  # there is no dog
    assert both.labels[:4].tolist() == [0, 1, 0, 1]
    assert both.domain_names == tuple(f"writer {i}" for i in range(4))
    train = load(tmp_path / "data", splits=["train"], domain_column="writer", cache="disk")
    assert isinstance(train.images, np.memmap)
    assert len(train.labels) == N
    again = load(tmp_path / "data", splits=["train"], domain_column="writer", cache="memory")
    assert again.digest == train.digest
    config = DataConfig(name="huggingface", num_clients=4, partition={"name": "natural"})
    clients = make_partition(config, train, 0)
    assert [set(train.domains[clients.train(c)].tolist()) for c in range(4)] == [{0}, {1}, {2}, {3}]
    with pytest.raises(ConfigError, match=r"data.splits: .* has no split 'validation'; it has train, test"):
        load(tmp_path / "data", splits=["validation"])


def test_a_saved_data_set_and_a_folder_of_images(tmp_path):
    table(grey=True).save_to_disk(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert saved.images.shape == (N, 8, 10, 1)
    assert np.array_equal(saved.images[3, ..., 0], pixels(3, (8, 10)))
    for i in range(4):
        path = tmp_path / "images" / "train" / ("ant", "bee")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i)).save(path)
    folder = load(tmp_path / "images")
    assert folder.class_names == ("ant", "bee")
    assert sorted(image.tobytes() for image in folder.images) == sorted(pixels(i).tobytes() for i in range(4))


def test_labels_of_other_kinds(tmp_path):
    plain = table().remove_columns("label")
    plain.add_column("kind", ["b", "a"] * 6).save_to_disk(tmp_path / "texts")
    assert load(tmp_path / "texts", label_column="kind").class_names == ("a", "b")
    plain.add_column("target", [0, 1, 2] * 4).save_to_disk(tmp_path / "numbers")
    assert load(tmp_path / "numbers").class_names == ("0", "1", "2")
    plain.add_column("target", [0.5] * N).save_to_disk(tmp_path / "fractions")
    with pytest.raises(ConfigError, match="column target of .* are float64"):
        load(tmp_path / "fractions")


def test_what_can_not_be_told_is_asked_for(tmp_path):
    table().rename_column("label", "species").add_column("size", [1] * N).save_to_disk(tmp_path / "species")
    assert load(tmp_path / "species").class_names == ("cat", "owl")  # the one column of classes
    two = table().cast_column("label", datasets.ClassLabel(names=["x", "y", "z"]))
    two = two.add_column("other", [0] * N).cast_column("other", datasets.ClassLabel(names=["x"]))
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(
        ConfigError, match=r"data.label_column: 2 columns \(label, other\) with class labels; name one of"
    ):
        load(tmp_path / "two")
    with pytest.raises(ConfigError, match="data.image_column: there is no column 'picture'; there are img"):
        load(tmp_path / "two", image_column="picture", label_column="label")
    table().remove_columns("img").save_to_disk(tmp_path / "no images")
    with pytest.raises(ConfigError, match="data.image_column: no column with images"):
        load(tmp_path / "no images")


def test_without_internet_without_the_package_and_other_sources(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"(?s)no folder someone/something here, and the hub .*`hf download someone"):
        load("someone/something")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no folder of parquet, arrow or image files"):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="'splits' is an option of 'huggingface', but name is 'digits'"):
        DataConfig(name="digits", splits=["train"])
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'raysim\[hf\]'"):
        hugging_face.hugging_face(DataConfig(name="huggingface", root=str(tmp_path)), 8, pixels=True)
