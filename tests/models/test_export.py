"""Exported models give raysim's own logits, in a process that has torch and timm only."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from raysim.algorithms import ALGORITHMS as METHODS
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.experiments.preparation import prepare
from raysim.models.build import build_model
from raysim.models.export import client_model, export, predict, read_images
from raysim.models.saved import SavedRun, about_file, personal_file, shared_file
from raysim.training.aggregation import Weights
from raysim.training.algorithm_server import AlgorithmServer
from raysim.training.engine import ClientEngine
from raysim.training.local_training import LocalTraining
from raysim.training.transforms import ModelInput

from configs import TINY, tiny

CLIENT = 3


def train_one(config: Config, folder: Path) -> tuple[ClientEngine, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A client trains a round; its files are written; returns engine, broadcast and what it keeps and is sent."""
    (run,) = prepare(config)
    data = run.dataset
    model = build_model(config.model, config.algorithm, data.num_classes, data.images.shape[3], config.seed)
    engine = ClientEngine(
        run.config, model, torch.from_numpy(run.initial), data.images, data.labels, run.partition, "cpu"
    )
    server = AlgorithmServer(config, run.layout, torch.from_numpy(run.initial), run.partition.num_train)
    server.shared += 0.01
    broadcast = server.sent()
    one = Weights(np.ones(1, np.int64), 1)
    states = engine.initial_state[None].copy()
    messages = server.messages(0, np.array([CLIENT]))
    weights, epochs = {"samples": one, "uniform": one}, config.train.local_epochs
    trained = engine.train(LocalTraining(0, np.array([CLIENT]), weights, epochs, messages), broadcast, states)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "about.json").write_bytes(
        about_file(run.config, run.config.rounds, data.class_names, data.images.shape[3], run.digests)
    )
    (folder / "shared.safetensors").write_bytes(shared_file(broadcast, run.layout, run.frozen))
    unpack = engine.state_layout.unpack
    state = {**unpack(torch.from_numpy(trained.states)), **messages}
    rows = {name: value.numpy() for name, value in state.items()}
    initial = {**unpack(torch.from_numpy(engine.initial_state)), **{name: m[0] for name, m in messages.items()}}
    (folder / "personal.safetensors").write_bytes(personal_file(np.array([CLIENT]), rows, initial))
    return engine, broadcast, {name: value[0] for name, value in state.items()}


def inside(
    engine: ClientEngine, broadcast: dict[str, torch.Tensor], state: dict[str, torch.Tensor], images: np.ndarray
) -> torch.Tensor:
    """The scores with which raysim evaluates the client, and its next round's number is that of the export."""
    predictor = engine.predictor(engine.config.rounds, CLIENT, broadcast, state)
    inputs = ModelInput(engine.config.model.image_size)(torch.from_numpy(images))
    with torch.no_grad():
        return predictor.scores(inputs[None])[0]


def outside(readmes: list[Path], images: np.ndarray) -> list[torch.Tensor]:
    """What the READMEs' code gives where raysim can't be imported."""
    folder = readmes[0].parent
    save_file({"x": ModelInput(8)(torch.from_numpy(images))}, folder / "input.safetensors")
    lines = ["import sys; sys.modules['raysim'] = sys.modules['algorithms'] = sys.modules['ray'] = None"]
    lines += ["from safetensors.torch import load_file, save_file", "logits = {}"]
    for i, readme in enumerate(readmes):
        code = re.search(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
        assert code is not None
        assert len(code[1].splitlines()) <= 16
        lines += [code[1], f"logits['{i}'] = model(load_file('input.safetensors')['x']).detach()"]
    lines += ["save_file(logits, 'output.safetensors')"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=folder, check=True)
    logits = load_file(folder / "output.safetensors")
    return [logits[str(i)] for i in range(len(readmes))]


ALGORITHMS = [
    {"name": "fedperfix", "mid_dim": 4},
    {"name": "fedperfix", "plugin": "lora", "mid_dim": 2},
    {"name": "fedperfix", "plugin": "prefix_random"},
    {"name": "fedperfix", "plugin": "adapter", "mid_dim": 4},
    {"name": "fedperfix", "plugin": "prompt", "mid_dim": 3},
    {"name": "fedperfix", "plugin": "prefix_zero"},  # beside a projection without a bias, see below
    {"name": "apfl", "alpha": 0.5, "mixture": "step"},
    {"name": "perfedavg"},
]


def test_exported_models_give_the_same_logits_without_raysim(tmp_path):
    """To 1e-6, all loaded by their READMEs' code in one process that has torch and timm only."""
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    readmes, expected = [], []
    for i, algorithm in enumerate(ALGORITHMS):
        no_bias = {"qkv_bias": False} if algorithm.get("plugin") == "prefix_zero" else {}
        config = tiny(algorithm=algorithm, model={"kwargs": TINY["model"]["kwargs"] | no_bias})
        engine, broadcast, state = train_one(config, tmp_path / f"run{i}")
        expected.append(inside(engine, broadcast, state, images))
        assert expected[-1].std() > 0.01
        model = client_model(SavedRun.open(tmp_path / f"run{i}"), CLIENT)
        torch.testing.assert_close(model.scores(images), expected[-1], atol=1e-6, rtol=0, msg=str(algorithm))
        readmes.append(export(model, tmp_path / f"client{i}.safetensors"))
    for algorithm, own, mine in zip(ALGORITHMS, outside(readmes, images), expected, strict=True):
        torch.testing.assert_close(own, mine, atol=1e-6, rtol=0, msg=str(algorithm))


def test_a_convolutional_model_takes_its_statistics_along(tmp_path):
    model = {"name": "resnet10t", "image_size": 32, "kwargs": {}}
    config = tiny(algorithm={"name": "fedbn", "personal": ["bn*"]}, model=model, resources={"clients_per_batch": 1})
    engine, broadcast, state = train_one(config, tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    mine = client_model(SavedRun.open(tmp_path / "run"), CLIENT)
    torch.testing.assert_close(mine.scores(images), inside(engine, broadcast, state, images), atol=1e-5, rtol=0)
    readme = export(mine, tmp_path / "client.safetensors")
    assert "img_size" not in readme.read_text()


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"centralized"}))
def test_every_method_predicts_and_is_exported_or_says_why_not(name, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    engine, broadcast, state = train_one(tiny(algorithm={"name": name}, train={"optimizer": {"lr": 0.01}}), tmp_path)
    model = client_model(SavedRun.open(tmp_path), CLIENT)
    scores = inside(engine, broadcast, state, images)
    torch.testing.assert_close(model.scores(images), scores, atol=1e-5, rtol=0)
    if METHODS[name].has_own("predict"):
        with pytest.raises(ConfigError, match=f"'{name}' predicts with more than the model"):
            export(model, tmp_path / "client.safetensors")
    elif METHODS[name].modules:
        with pytest.raises(ConfigError, match="to the model, a plugin that raysim does not know"):
            export(model, tmp_path / "client.safetensors")
    else:
        assert export(model, tmp_path / "client.safetensors").is_file()


def test_a_part_of_a_models_width_is_not_exported(tmp_path):
    algorithm = {"name": "heterofl", "widths": [0.5], "evaluated": "width"}
    train_one(tiny(algorithm=algorithm, train={"optimizer": {"lr": 0.01}}), tmp_path)
    model = client_model(SavedRun.open(tmp_path), CLIENT)
    with pytest.raises(ConfigError, match="'heterofl' evaluates the client with a part of the model's width"):
        export(model, tmp_path / "client.safetensors")


def test_who_never_trained_has_the_initial_state(tmp_path):
    train_one(tiny(), tmp_path)
    run = SavedRun.open(tmp_path)
    assert run.clients.tolist() == [CLIENT]
    personal, other = run.state(CLIENT)["personal"], run.state(0)["personal"]
    assert personal.shape == other.shape == (run.layout.num_personal,)
    assert not torch.equal(personal, other)
    (prepared,) = prepare(tiny())
    assert torch.equal(other, run.layout.split(torch.from_numpy(prepared.initial))[1])


def test_what_can_not_be_exported_is_told(tmp_path):
    train_one(tiny(), tmp_path)
    with pytest.raises(ConfigError, match="--client is needed: with 'fedperfix' each client has a model"):
        client_model(SavedRun.open(tmp_path), None)
    with pytest.raises(ConfigError, match="--client 8: the run has clients 0 to 7"):
        client_model(SavedRun.open(tmp_path), 8)
    with pytest.raises(ConfigError, match="--to .*: can't be written"):
        export(client_model(SavedRun.open(tmp_path), 1), tmp_path / "nowhere" / "a.safetensors")
    (tmp_path / "personal.safetensors").unlink()
    with pytest.raises(ConfigError, match="tracking.models=all"):
        client_model(SavedRun.open(tmp_path), 1)
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(ConfigError, match="about.json: is damaged"):
        SavedRun.open(tmp_path)


def test_the_shared_model_needs_no_client(tmp_path):
    engine, broadcast, _ = train_one(tiny(algorithm={"name": "fedavg"}), tmp_path)
    model = client_model(SavedRun.open(tmp_path), None)
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    expected = inside(engine, broadcast, {"personal": torch.empty(0)}, images)
    torch.testing.assert_close(model.scores(images), expected, atol=1e-6, rtol=0)


def test_a_model_that_is_put_together_from_a_state_needs_a_client(tmp_path):
    train_one(tiny(algorithm={"name": "apfl"}), tmp_path)
    with pytest.raises(ConfigError, match="--client is needed: with 'apfl' each client has a model"):
        client_model(SavedRun.open(tmp_path), None)


def test_an_image_file_is_classified(tmp_path):
    engine, broadcast, state = train_one(tiny(), tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "image.png")
    images = read_images([tmp_path / "image.png"], 1)
    assert (images[0][0, :, :, 0] == pixels).all()
    (top,) = predict(client_model(SavedRun.open(tmp_path), CLIENT), images, most=10)
    expected = inside(engine, broadcast, state, images[0])[0].softmax(dim=-1)
    assert dict(top) == pytest.approx({str(i): p for i, p in enumerate(expected.tolist())}, abs=1e-6)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    (tmp_path / "not.png").write_text("no image")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match="deep.png: has more than 8 bits per channel"):
        read_images([tmp_path / "deep.png"], 1)
    with pytest.raises(ConfigError, match="not.png: is no image"):
        read_images([tmp_path / "not.png"], 1)


def test_a_client_does_not_adapt_on_other_data_than_the_runs(tmp_path):
    images, labels = np.zeros((400, 8, 8), np.uint8), np.arange(400) % 10
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    data = {"name": "npz", "root": str(tmp_path / "data.npz"), "subset": None}
    for algorithm in ("fedbabu", "fedavg"):
        train_one(tiny(algorithm={"name": algorithm}, data=data), tmp_path / algorithm)
    client_model(SavedRun.open(tmp_path / "fedbabu"), CLIENT)
    np.savez(tmp_path / "data.npz", images=images + 1, labels=labels)
    with pytest.raises(ConfigError, match="the samples .* differ from the run's .* 'fedbabu' a client is evaluated"):
        client_model(SavedRun.open(tmp_path / "fedbabu"), CLIENT)
    client_model(SavedRun.open(tmp_path / "fedavg"), None)  # needs no data


def test_prediction_sees_what_training_saw(tmp_path):
    """Files of mixed sizes, turned by EXIF, transparent: pixel for pixel, and normalised as the run was."""
    rng = np.random.default_rng(0)
    for domain in ("a", "b"):
        for label in ("x", "y"):
            folder = tmp_path / "images" / domain / label
            folder.mkdir(parents=True)
            for i in range(4):
                height, width = rng.integers(9, 40, 2)
                alpha = i == 1
                pixels = rng.integers(0, 256, (height, width, 4 if alpha else 3), dtype=np.uint8)
                exif = Image.Exif()
                exif[0x0112] = 6
                Image.fromarray(pixels).save(folder / f"{i}.png", **({"exif": exif} if i == 2 else {}))
    normalize = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    data = {"name": "image_folder", "root": str(tmp_path / "images"), "subset": None, "num_clients": 4}
    data |= {"normalize": normalize, "partition": {"name": "iid", "alpha": None, "min_samples": None, "cap": None}}
    config = tiny(data=data, algorithm={"name": "fedavg"}, train={"batch_size": 2})
    engine, _, _ = train_one(config, tmp_path / "run")
    files = sorted((tmp_path / "images").rglob("*.png"))
    trained = engine.samples.model_input(engine.samples.data.at(np.arange(len(files)))[0])
    model = client_model(SavedRun.open(tmp_path / "run"), None)
    seen = []
    model.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for image in read_images(files, 3):
        model.scores(image)
    torch.testing.assert_close(torch.cat(seen), trained, atol=0, rtol=0)
    assert trained.max() > 1.5  # white; with one half it would be 1
    readme = export(model, tmp_path / "all.safetensors").read_text()
    assert "(x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]" in readme
    assert "EXIF" in readme
