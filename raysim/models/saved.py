"""The trained models of a run as files: the shared parameters, every client's state, and what is needed to use them.

    model/shared.safetensors     the shared parameters by their names in the model, and the frozen ones
    model/personal.safetensors   ``clients`` (M,), what each of them keeps and is sent for itself (M, n), and ``initial.…``
                                 (n,) of all others
    model/about.json             configuration, classes, channels, digests of data and partition

A client's model is what ``aggregated/...`` of the last round is about: the algorithm's ``personalize`` of both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from torch import nn

from raysim.config.loading import config_of
from raysim.config.schema import Config
from raysim.errors import ConfigError
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.training.engine import layout_of

FOLDER = "model"
MOST_BYTES = 25 * 10**7  # larger personal states are not saved as artifacts with `tracking.models: auto`
INITIAL, SENT = "initial.", "broadcast."


class About(BaseModel):
    """``about.json``."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: int = 2
    config: dict[str, Any]
    """The run's configuration, with every ``auto`` resolved."""
    class_names: list[str]
    in_channels: int
    data_digest: str
    """Of the run's samples, ..."""
    rounds: int | None = None
    """How many rounds the run has had; None in files from before this was kept: as many as configured."""
    partition_digest: str
    """... and of their division among clients: where a client adapts before it is evaluated, it needs the same again."""


def shared_file(broadcast: Tensors, layout: ParameterLayout, frozen: Mapping[str, NDArray[np.float32]]) -> bytes:
    """What the server would send after the last round, ``shared`` (S,) cut into its tensors; and the frozen ones."""
    tensors: dict[str, NDArray[Any]] = {}
    pieces = broadcast["shared"].numpy()
    for name, shape in zip(layout.names[: layout.num_shared_tensors], layout.shapes, strict=False):
        tensors[name] = pieces[: math.prod(shape)].reshape(shape).copy()
        pieces = pieces[math.prod(shape) :]
    tensors |= {f"{SENT}{name}": value.numpy().copy() for name, value in broadcast.items() if name != "shared"}
    return bytes(save({**tensors, **{name: np.ascontiguousarray(value) for name, value in frozen.items()}}))


def personal_file(clients: NDArray[np.int64], states: Mapping[str, NDArray[np.float32]], initial: Tensors) -> bytes:
    """The states, each (M, n), of clients (M,), and the initial state (n,) that all others still have."""
    tensors: dict[str, NDArray[Any]] = {"clients": clients}
    tensors |= {name: np.ascontiguousarray(rows) for name, rows in states.items()}
    tensors |= {f"{INITIAL}{name}": value.numpy().copy() for name, value in initial.items()}
    return bytes(save(tensors))


def about_file(
    config: Config, rounds: int, class_names: tuple[str, ...], in_channels: int, digests: Mapping[str, str]
) -> bytes:
    """``rounds`` that the run has had, which may have ended early; ``digests`` of ``data`` and ``partition``."""
    about = About(
        config=config.model_dump(mode="json"),
        class_names=list(class_names),
        in_channels=in_channels,
        data_digest=digests["data"],
        rounds=rounds,
        partition_digest=digests["partition"],
    )
    return about.model_dump_json(indent=1).encode()


@dataclass(frozen=True)
class SavedRun:
    """The files of a run, opened.

    Attributes:
        model: the architecture with the algorithm's plugin; its values belong to no client and are not used.
        about: configuration, classes, channels.
    """

    folder: Path
    config: Config
    about: About
    model: nn.Module
    layout: ParameterLayout

    @classmethod
    def open(cls, folder: Path) -> SavedRun:
        """The files in a folder.

        Raises:
            ConfigError: one is missing or damaged.
        """
        from raysim.models.build import build_model  # not at the top: the driver only writes, and would wait for timm

        try:
            about = About.model_validate(json.loads((folder / "about.json").read_text()))
        except (OSError, ValueError) as error:
            what = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else str(error)
            raise ConfigError(f"{folder / 'about.json'}: is damaged or of another version of raysim: {what}") from error
        config = config_of({**about.config, "study": None}, [], str(folder / "about.json"))
        plain = config.model.model_copy(update={"pretrained": False, "weights": None})  # its values are not needed
        model = build_model(plain, config.algorithm, len(about.class_names), about.in_channels, config.seed, new=False)
        return cls(folder, config, about, model, layout_of(model, config.algorithm))

    @property
    def rounds(self) -> int:
        """How many rounds the run has had."""
        return self.about.rounds or self.config.rounds

    @property
    def clients(self) -> NDArray[np.int64]:
        """Ids of the clients that have a state of their own, ascending."""
        ids: NDArray[np.int64] = self._rows("clients")
        return ids

    def broadcast(self) -> tuple[Tensors, Tensors]:
        """What clients get from the server, of which ``shared`` is (S,); and the frozen tensors by name."""
        path = self.folder / "shared.safetensors"
        tensors = {name: torch.from_numpy(value) for name, value in _opened(path, load_file).items()}
        layout = self.layout
        names = layout.names[: layout.num_shared_tensors]
        if missing := [name for name in (*names, *layout.frozen) if name not in tensors]:
            raise ConfigError(f"{path}: has no {missing[0]}, which the model has")
        parts = [tensors[name].reshape(-1) for name in names]
        sent = {name.removeprefix(SENT): tensors[name] for name in tensors if name.startswith(SENT)}
        sent["shared"] = torch.cat(parts) if parts else torch.empty(0)
        return sent, {name: tensors[name] for name in layout.frozen}

    def state(self, client: int) -> Tensors:
        """What a client keeps, by name.

        Raises:
            ConfigError: there is no such client, or the states were not saved.
        """
        if not 0 <= client < self.config.data.num_clients:
            raise ConfigError(f"--client {client}: the run has clients 0 to {self.config.data.num_clients - 1}")
        at = np.flatnonzero(self.clients == client)
        with _opened(self.folder / "personal.safetensors", lambda path: safe_open(path, "pt")) as file:
            names = [n.removeprefix(INITIAL) for n in file.keys() if n.startswith(INITIAL)]  # noqa: SIM118
            if not len(at):
                return {name: file.get_tensor(INITIAL + name) for name in names}
            row = int(at[0])
            return {name: file.get_slice(name)[row : row + 1][0] for name in names}

    def _rows(self, name: str) -> Any:
        path = self.folder / "personal.safetensors"
        if not path.exists():
            raise ConfigError(
                "the clients' states are not among the run's artifacts; run with tracking.models=all to save them"
            )
        with _opened(path, lambda path: safe_open(path, "np")) as file:
            return file.get_tensor(name)


def _opened(path: Path, read: Any) -> Any:
    try:
        return read(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from error
