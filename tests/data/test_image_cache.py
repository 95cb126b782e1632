import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import raysim
from raysim.config.sections.data import DataConfig
from raysim.data import decoding, image_cache
from raysim.data.loading import mapped_images
from raysim.data.sources import load_dataset
from raysim.errors import ConfigError
from raysim.training.sample_batches import Samples

from configs import tiny


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The image cache of a test."""
    monkeypatch.setenv("RAYSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def make_images(root, count=6, size=(10, 8), seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        path = root / f"domain{i % 2}" / f"class{i // 2 % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(path)
    return root


def load(root, side=8, **keys):
    return load_dataset(DataConfig(name="image_folder", root=str(root), **keys), side)


def test_a_second_start_decodes_nothing_and_gives_the_same(tmp_path, folder, monkeypatch):
    root = make_images(tmp_path / "images")
    memory, first = load(root, cache="memory"), load(root, cache="disk")
    monkeypatch.setattr(decoding, "read_image", None)
    monkeypatch.setattr(decoding, "image_size", None)
    for again in (load(root, cache="disk"), load(root), load(root, side=16)):  # images of one size keep it
        assert np.array_equal(again.images, memory.images)
        assert again.digest == first.digest == memory.digest
    assert isinstance(load(root, cache="disk").images, np.memmap)
    assert not isinstance(load(root).images, np.memmap)  # small: in memory
    monkeypatch.setattr(decoding, "SMALL_BYTES", 100)
    large = load(root)
    assert isinstance(large.images, np.memmap)
    assert load(root, rgb=False, subset=4).cache == ""  # a part is read into memory
    assert load(root, subset=4).digest != large.digest
    (entry,) = image_cache.entries()
    assert (entry.key, entry.about.root, entry.about.shape) == (large.cache, str(root), (6, 8, 10, 3))


def test_samples_of_mapped_images_are_those_in_memory(tmp_path):
    root = make_images(tmp_path / "images")
    memory, mapped = (load(root, cache=cache) for cache in ("memory", "disk"))
    index = np.array([[5, 0, 0], [2, 5, 1]])
    cpu = torch.device("cpu")
    for found in (Samples(d.images, d.labels, cpu, 0).at(index)[0] for d in (memory, mapped)):
        assert np.array_equal(found, memory.images[index])


def test_changed_files_and_another_side_are_other_images(tmp_path):
    root = make_images(tmp_path / "images")
    Image.new("RGB", (4, 4)).save(root / "domain0" / "class0" / "small.png")
    first, other = load(root, side=8, cache="disk"), load(root, side=6, cache="disk")
    assert (first.images.shape, other.images.shape) == ((7, 8, 8, 3), (7, 6, 6, 3))
    assert np.array_equal(load(root, side=6, cache="memory").images, other.images)
    Image.new("RGB", (4, 4), "red").save(root / "domain0" / "class0" / "small.png")
    changed = load(root, side=8, cache="disk")
    assert changed.digest != first.digest
    assert len(image_cache.entries()) == 3


def test_several_commands_at_once_decode_once(tmp_path, monkeypatch):
    root, decoded = make_images(tmp_path / "images"), []
    read = decoding.read_image

    def slow(path, channels):
        decoded.append(path)
        time.sleep(0.02)
        return read(path, channels)

    monkeypatch.setattr(decoding, "read_image", slow)
    with ThreadPoolExecutor(4) as threads:
        digests = {dataset.digest for dataset in threads.map(lambda _: load(root, cache="disk"), range(4))}
    assert len(decoded) == 6
    assert len(digests) == 1


def _die_while_writing(root):
    def killed(path, channels):
        os.kill(os.getpid(), signal.SIGKILL)

    decoding.read_image = killed
    load(root, cache="disk")


def test_what_a_killed_command_left_is_not_used_and_is_removed(tmp_path, folder):
    root = make_images(tmp_path / "images")
    process = multiprocessing.get_context("fork").Process(target=_die_while_writing, args=(root,))
    process.start()
    process.join()
    assert process.exitcode == -9
    (left,) = image_cache.entries()
    assert left.about is None
    whole = load(root, cache="disk")
    assert whole.digest == load(root, cache="memory").digest
    assert not list(folder.glob("*.part-*"))


@pytest.mark.parametrize("damage", ["images.npy", "about.json", "truncated", "empty"])
def test_what_is_damaged_is_decoded_again(tmp_path, folder, damage, invoke):
    root = make_images(tmp_path / "images")
    first = load(root, cache="disk")
    here = folder / first.cache
    if damage == "truncated":
        (here / "images.npy").write_bytes((here / "images.npy").read_bytes()[:200])
    elif damage == "empty":
        (here / "about.json").write_text("")
    else:
        (here / damage).unlink()
    assert "not whole" in invoke("cache").output
    assert load(root, cache="disk").digest == first.digest
    assert "6 of 10 x 8" in invoke("cache").output


def test_an_image_that_can_not_be_read_leaves_nothing_behind(tmp_path, folder):
    root = make_images(tmp_path / "images")
    bad = root / "domain0" / "class0" / "bad.png"
    bad.write_bytes((root / "domain0" / "class0" / "0.png").read_bytes()[:150])
    with pytest.raises(ConfigError, match="bad.png is not a readable image"):
        load(root, cache="disk")
    assert image_cache.entries() == []
    bad.unlink()
    assert load(root, cache="disk").images.shape == (6, 8, 10, 3)


def test_no_room_and_other_sources(tmp_path, monkeypatch):
    root = make_images(tmp_path / "images")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(ConfigError, match=r"data.cache: the decoded images take 0.0 GB.* set RAYSIM_CACHE to a folder"):
        load(root, cache="disk")
    with pytest.raises(
        ValueError, match="'cache' is an option of 'image_folder' and 'huggingface', but name is 'digits'"
    ):
        DataConfig(name="digits", cache="disk")


def test_a_node_decodes_its_decoding_and_refuses_others(tmp_path, monkeypatch):
    root = make_images(tmp_path / "images")
    config = tiny(data={"name": "image_folder", "root": str(root), "cache": "disk", "subset": None})
    there = load(root, cache="disk")
    monkeypatch.setenv("RAYSIM_CACHE", str(tmp_path / "another node"))
    assert np.array_equal(mapped_images(config, there.cache, there.known_digest), there.images)
    (entry,) = image_cache.entries()
    assert str(entry.key) == there.cache
    with pytest.raises(ConfigError, match=r"on this node .* has other images than where the run was started"):
        mapped_images(config, "another", "0123456789abcdef")


def test_the_command_lists_and_clears(tmp_path, folder, invoke):
    keys = [load(make_images(tmp_path / name, seed=i), cache="disk").cache for i, name in enumerate(("one", "two"))]
    listed = invoke("cache").output
    assert all(key in listed for key in keys)
    assert "6 of 10 x 8" in listed
    assert "0.00 GB freed" in invoke("cache", keys[0], "--clear").output
    assert [entry.key for entry in image_cache.entries()] == [keys[1]]
    result = invoke("cache", "nothing", "--clear")
    assert result.exit_code == 2
    assert "there is no nothing" in result.output
    invoke("cache", "--clear")
    assert image_cache.entries() == []


def test_about_is_what_was_written(tmp_path, folder):
    dataset = load(make_images(tmp_path / "images"), cache="disk")
    about = json.loads((folder / dataset.cache / "about.json").read_text())
    assert about["digest"] == dataset.known_digest
    assert np.load(folder / dataset.cache / "images.npy").shape == (6, 8, 10, 3)


@pytest.mark.slow
def test_a_run_on_mapped_images_has_the_same_bits(cluster, tmp_path, monkeypatch):
    monkeypatch.delenv("RAYSIM_CACHE")  # the actors of the session's cluster have its own
    root = make_images(tmp_path / "images", count=120, size=(8, 8))
    data = {"name": "image_folder", "root": str(root), "subset": None, "num_clients": 4, "partition": {"name": "iid"}}
    study = [{"name": cache, "data": {"cache": cache}} for cache in ("memory", "disk")]
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    runs = raysim.run(tiny(data=data, study=study, tracking=tracking, resources={"num_actors": 1})).runs
    assert runs[0].checksums == runs[1].checksums
