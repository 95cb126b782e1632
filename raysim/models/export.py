"""``raysim export`` and ``raysim predict``: a client's model from a finished run, usable with torch and timm alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from raysim.algorithms.width import SubLayerNorm
from raysim.data.images import TooDeep, read_image
from raysim.data.loading import load_data
from raysim.data.partition import Partition
from raysim.errors import ConfigError
from raysim.models.build import plain_model
from raysim.models.saved import SavedRun
from raysim.own_code import is_own_model
from raysim.plugins.fold import fold, rebuild
from raysim.training.engine import ClientEngine
from raysim.training.evaluation import Predictor
from raysim.training.transforms import ModelInput


@dataclass(frozen=True)
class ClientModel:
    """The model that a client is evaluated with after the last round.

    Attributes:
        run: the run that the model comes from.
        client: the client's id; None for the shared model of a method that shares everything.
        model: the model with its values and the algorithm's plugin, ready for use.
        predictor: the client as it is evaluated; None for the shared model.
    """

    run: SavedRun
    client: int | None
    model: nn.Module
    predictor: Predictor | None

    def example(self) -> NDArray[np.float32]:
        """(2, C, H, W): two grey images as the model takes them."""
        size = self.run.config.model.image_size
        grey = torch.full((2, size, size, self.run.about.in_channels), 128, dtype=torch.uint8)
        inputs: NDArray[np.float32] = ModelInput.of(self.run.config)(grey).numpy()
        return inputs

    @torch.no_grad()
    def scores(self, images: NDArray[np.uint8]) -> Tensor:
        """Images (B, H, W, C) uint8, of any size, to scores (B, classes), whose softmax are the probabilities."""
        inputs = ModelInput.of(self.run.config)(torch.from_numpy(images.copy()))
        if self.predictor is not None:
            return self.predictor.scores(inputs[None])[0]
        result: Tensor = self.model.eval()(inputs)
        return result


def client_model(run: SavedRun, client: int | None) -> ClientModel:
    """Put a client's model together.

    Raises:
        ConfigError: there is no such client; a method with personal parameters has no model without a client; the data on
            which a client adapts before it is evaluated can't be loaded.
    """
    algorithm = run.config.algorithm
    own = algorithm.has_own("personalize", "predict")  # by a state that is no part of the model
    if client is None and (own or run.layout.num_personal or algorithm.adapt_steps()):
        raise ConfigError(f"--client is needed: with {algorithm.name!r} each client has a model of its own")
    broadcast, frozen = run.broadcast()
    predictor = None
    if client is not None:
        after = run.rounds  # the round that would come next: what is evaluated after the last server step
        predictor = _engine(run).predictor(after, client, broadcast, run.state(client))
    theta = broadcast["shared"] if predictor is None else predictor.theta[0]
    values = run.layout.unflatten(theta) | frozen
    run.model.load_state_dict({name: value.clone() for name, value in values.items()}, strict=False)
    return ClientModel(run, client, run.model, predictor)


def _engine(run: SavedRun) -> ClientEngine:
    """An engine for one client's model; the run's data are loaded only if the client is evaluated with them."""
    config = run.config
    if config.algorithm.adapt_steps() or config.algorithm.has_own("predict", "remember", "takes_part"):
        data, partition = load_data(config)
        about = run.about
        found = {"samples": data.digest, "division among clients": partition.digest}
        expected = {"samples": about.data_digest, "division among clients": about.partition_digest}
        if differ := [what for what, digest in found.items() if digest != expected[what]]:
            raise ConfigError(
                f"data: the {differ[0]} (digest {found[differ[0]]}) differ from the run's ({expected[differ[0]]}), and with "
                f"{config.algorithm.name!r} a client is evaluated with its training samples: the model would be another "
                "one. Put the run's data back"
            )
        images, labels = data.images, data.labels
    else:
        images = np.zeros((1, 1, 1, run.about.in_channels), np.uint8)
        labels, none = np.zeros(1, np.int64), np.zeros(0, np.int64)
        nobody = np.zeros(config.data.num_clients + 1, np.int64)
        partition = Partition(none, nobody, nobody[1:])
    resources = config.resources.model_copy(update={"device": "cpu", "precision": "float32", "compile": False})
    config = config.model_copy(update={"resources": resources})
    return ClientEngine(config, run.model, torch.zeros(run.layout.num_parameters), images, labels, partition, "cpu")


def check_whole(of: ClientModel) -> None:
    """Raises a ConfigError if the client predicts with more than its model, or with a part of one."""
    if any(isinstance(module, SubLayerNorm) and (module.weight == 0).any() for module in of.model.modules()):
        raise ConfigError(
            f"{of.run.config.algorithm.name!r} evaluates the client with a part of the model's width, whose norms timm's "
            "model has not; raysim predict does it, and without --client the whole model is exported"
        )
    if of.run.config.algorithm.has_own("predict"):
        raise ConfigError(
            f"{of.run.config.algorithm.name!r} predicts with more than the model (see its file), which a state dict of timm "
            "can't hold; raysim predict does it"
        )


def export(of: ClientModel, to: Path, logged: tuple[str, str] | None = None) -> Path:
    """Write a client's model as an ordinary timm state dict, and beside it a README on how to load it; returns that.

    ``logged``: the MLflow store, and the address of the same model in it, for the README.

    Raises:
        ConfigError: it can't be written, or timm has no place for what the algorithm added to the model.
    """
    check_whole(of)
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in of.model.state_dict().items()
        if not name.startswith(tuple(f"{module}." for module in of.run.config.algorithm.modules))
    }
    fold(of.model, tensors)
    config, about = of.run.config, of.run.about
    plain, arguments = plain_model(config.model, len(about.class_names), about.in_channels)
    code = rebuild(of.model)
    more = sorted(tensors.keys() - plain.state_dict().keys())
    if more and not code:
        raise ConfigError(
            f"{config.algorithm.name!r} adds {more[0]} to the model, a plugin that raysim does not know, so it can't "
            "be exported for timm"
        )
    readme = to.with_suffix(".md")
    try:
        data = save({n: t.contiguous() for n, t in tensors.items()}, {"class_names": json.dumps(about.class_names)})
        to.write_bytes(data)
        readme.write_text(_readme(of, to.name, arguments, code) + _of_mlflow(logged), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--to {to}: can't be written: {error}") from error
    return readme


def _of_mlflow(logged: tuple[str, str] | None) -> str:
    if logged is None:
        return ""
    uri, address = logged
    return f"""
The same model is in MLflow, as a graph that needs torch alone, neither raysim nor timm:

```python
import mlflow

mlflow.set_tracking_uri({uri!r})
model = mlflow.pytorch.load_model({address!r})
```
"""


def _readme(of: ClientModel, file: str, arguments: dict[str, Any], plugin: list[str]) -> str:
    config, names, size = of.run.config, of.run.about.class_names, of.run.config.model.image_size
    whose = f"of client {of.client}" if of.client is not None else "shared by all clients"
    classes = ", ".join(f"{i} {name}" for i, name in enumerate(names[:50])) + (", …" if len(names) > 50 else "")
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    colours = {1: "greyscale", 3: "RGB"}.get(of.run.about.in_channels, f"{of.run.about.in_channels} channels")
    imports, made = "import timm, torch", f"timm.create_model({config.model.name!r}{given})"
    if is_own_model(config.model.name):
        module, _, function = config.model.name.partition(":")
        imports, made = (
            f"import timm, torch\nfrom {module} import {function}",
            f"{function}({given.removeprefix(', ')})",
        )
    lines = [
        imports,
        "",
        f"model = {made}",
        *plugin,
        f"timm.models.load_checkpoint(model, {file!r})",
        "model.eval()",
    ]
    code = "\n".join(lines)
    parts = "the final shared parameters" + (" and the client's personal ones" if of.run.layout.num_personal else "")
    adapted = ", after its adaptation on its training samples" if config.algorithm.adapt_steps() else ""
    return f"""# {file}

The model {whose} after round {of.run.rounds} of {config.name!r}: {config.model.name} trained by {config.algorithm.name} on
{config.data.name}. It has {parts}{adapted}.

```python
{code}
```

Input: {colours} images (B, {of.run.about.in_channels}, {size}, {size}), turned as EXIF says, what is transparent on white,
resized bilinearly with antialiasing (as `torch.nn.functional.interpolate` does, to whole grey levels), values
{ModelInput.of(config)}. Output: logits (B, {len(names)}). Classes: {classes}.
"""


def read_images(paths: Sequence[Path], channels: int) -> list[NDArray[np.uint8]]:
    """Read image files, each as an array (1, H, W, C).

    Raises:
        ConfigError: a file is no image, or has more than 8 bits per channel.
    """
    images = []
    for path in paths:
        try:
            images.append(read_image(path, channels)[None])
        except TooDeep as error:
            raise ConfigError(f"{path}: {error}") from error
        except Exception as error:  # Pillow's decoders raise many kinds, and an error of its own for bombs
            raise ConfigError(f"{path}: is no image that can be read: {error}") from error
    return images


def predict(of: ClientModel, images: Sequence[NDArray[np.uint8]], most: int = 5) -> list[list[tuple[str, float]]]:
    """For each image the ``most`` probable classes with their probabilities."""
    result = []
    for image in images:
        probabilities = of.scores(image)[0].softmax(dim=-1)
        values, order = probabilities.sort(descending=True, stable=True)
        top = zip(order[:most].tolist(), values[:most].tolist(), strict=True)
        result.append([(of.run.about.class_names[i], p) for i, p in top])
    return result
