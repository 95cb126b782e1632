"""What can be told without a cluster is told before Ray starts, without waiting for pixels."""

import subprocess
import sys

import numpy as np
import pytest

from raysim.data.loading import load_data
from raysim.errors import ConfigError
from raysim.experiments import command, preparation
from raysim.experiments.preparation import check, prepare

from configs import tiny


def images(n=60, side=8):
    return np.random.default_rng(0).integers(0, 256, (n, side, side), np.uint8)


@pytest.fixture
def mistakes(tmp_path):
    """Configurations with a mistake each, by what the message is about."""
    np.savez(tmp_path / "floats.npz", images=images() / 255, labels=np.arange(60) % 3)
    np.savez(tmp_path / "few.npz", images=images(), labels=np.arange(59) % 3)
    np.savez(tmp_path / "damaged.npz", images=images(), labels=np.arange(60) % 3)
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "damaged.npz").read_bytes()[:-40])
    (tmp_path / "folder/photo/train").mkdir(parents=True)
    (tmp_path / "folder/photo/test").mkdir()

    def npz(name):
        return tiny(data={"name": "npz", "root": str(tmp_path / name)})

    split = {"name": "file", "path": str(tmp_path / "none.npz")}
    return {
        "there is no file": npz("none.npz"),
        "images of .* are float64": npz("floats.npz"),
        r"labels of .* are int64 \(59,\)": npz("few.npz"),
        "is damaged or not an npz": npz("damaged.npz"),
        "look like splits": tiny(data={"name": "image_folder", "root": str(tmp_path / "folder")}),
        "data.num_clients: 5000 clients need": tiny(data={"num_clients": 5000}),
        "data.partition.path": tiny(data={"partition": split}),
        "the pattern 'nothing' matches no parameter": tiny(algorithm={"name": "fedperfix", "personal": ["nothing"]}),
        "model.weights: there is no file": tiny(model={"weights": str(tmp_path / "none.safetensors")}),
        "timm has no model 'vit_tony'": tiny(model={"name": "vit_tony"}),
        "study entry 'odd · seed 0': algorithm.personal": tiny(
            study=[{"name": "fine"}, {"name": "odd", "algorithm": {"name": "fedperfix", "personal": ["nothing"]}}]
        ),
        "study: 'b · seed 0' has other resources": tiny(
            study=[{"name": "a"}, {"name": "b", "resources": {"num_actors": 3}}]
        ),
    }


def test_mistakes_are_told_before_ray_starts_as_they_would_be_later(mistakes, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(command, "connect", lambda resources: pytest.fail("Ray was started"))
    for message, config in mistakes.items():
        with pytest.raises(ConfigError, match=message) as told:
            command.run(config)
        with pytest.raises(ConfigError) as later:
            prepare(config)
        assert told.value.problems == later.value.problems
    assert not [*tmp_path.glob("home/**/study.json")]


def test_an_address_at_which_nobody_answers_is_told_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "connect", lambda resources: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=r"tracking.uri: http://127.0.0.1:9 can't be used"):
        command.run(tiny(tracking={"uri": "http://127.0.0.1:9"}))


def test_pixels_are_not_waited_for(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "y").mkdir()
        for i in range(40):
            (tmp_path / name / ("x", "y")[i % 2] / f"{i}.jpg").write_bytes(b"no image")
    data = {"name": "image_folder", "root": str(tmp_path), "num_clients": 4, "subset": None}
    config = tiny(data={**data, "partition": {"min_samples": 2}})
    check(config)
    with pytest.raises(ConfigError, match="is not a readable image"):
        prepare(config)


@pytest.mark.parametrize("data", [{}, {"rgb": True}, {"subset": 300}, {"rotated_domains": True}, {"npz": 1}])
def test_without_pixels_all_else_is_the_same(data, tmp_path):
    if "npz" in data:
        np.savez(tmp_path / "own.npz", images=images(), labels=np.arange(60) % 3, domains=np.arange(60) % 2)
        data = {"name": "npz", "root": str(tmp_path / "own.npz"), "num_clients": 4, "subset": 50}
        data["partition"] = {"min_samples": 2}
    config = tiny(data=data)
    (whole, split), (less, same) = load_data(config), load_data(config, pixels=False)
    assert split.digest == same.digest
    assert less.images.shape == (len(whole.images), 0, 0, whole.images.shape[3])
    np.testing.assert_array_equal(less.labels, whole.labels)
    assert (less.domains is None) == (whole.domains is None)
    assert (less.class_names, less.domain_names) == (whole.class_names, whole.domain_names)


def test_runs_that_differ_in_their_seed_are_looked_at_once(monkeypatch):
    looked_at = []
    monkeypatch.setattr(preparation, "prepare_run", lambda entry, config, *data: looked_at.append(config.name))
    check(tiny(study=[{"name": "a", "seeds": [0, 1, 2]}, {"name": "b", "algorithm": {"name": "fedavg"}}]))
    assert looked_at == ["a · seed 0", "b · seed 0"]


def test_a_configuration_is_read_without_what_takes_seconds_to_import():
    code = """
import sys, raysim
raysim.load_config("yaml/quickstart.yaml")
print([name for name in ("ray", "timm", "torchvision", "mlflow", "pandas", "matplotlib", "scipy", "sklearn", "medmnist")
       if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
