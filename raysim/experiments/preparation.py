"""From a configuration to runs that are checked: data loaded and divided, model built.

Everything that can be wrong with the configuration or the data is found here, before any actor is started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysim.config.fingerprint import algorithm_digest, array_digest
from raysim.config.loading import children
from raysim.config.schema import Config
from raysim.data.dataset import Dataset
from raysim.data.loading import load_data
from raysim.data.own_source import own_loader
from raysim.data.partition import Partition
from raysim.errors import ConfigError
from raysim.experiments.callbacks.making import check_callbacks
from raysim.functional.parameters import ParameterLayout, pretrained_cfg
from raysim.own_code import check_travels, imported, is_own, own_function
from raysim.training.engine import layout_of, make_optimizer
from raysim.training.transforms import check_augmentation
from raysim.training.upload_memory import check_uploads
from raysim.workers.auto_resources import clients_per_batch, same_resources, with_clients_per_batch


@dataclass(frozen=True)
class PreparedRun:
    """A run that has been checked, with its data in this process.

    Attributes:
        entry: name of the study entry, the same for all its seeds.
        config: with ``clients_per_batch`` as it would be on a CPU.
        initial: (P,) the initial parameters.
        frozen: the frozen parameters, which are not in ``initial``.
        auto_batches: whether raysim chooses ``clients_per_batch``.
    """

    entry: str
    config: Config
    dataset: Dataset
    partition: Partition
    layout: ParameterLayout
    initial: NDArray[np.float32]
    frozen: dict[str, NDArray[np.float32]]
    auto_batches: bool

    @property
    def digests(self) -> dict[str, str]:
        """Of everything that results depend on besides the configuration's values; equal for equal runs."""
        return {
            "data": self.dataset.digest,
            "partition": self.partition.digest,
            "initial": array_digest([self.initial]),
            "frozen": array_digest(self.frozen),
            "algorithm": algorithm_digest(self.config),
        }


def prepare(config: Config) -> list[PreparedRun]:
    """Check everything about every run of a configuration; equal data sets are loaded once.

    Raises:
        ConfigError: see its message.
    """
    cache: dict[str, Any] = {}
    prepared = []
    for entry, child in children(config):
        with _naming(config, child):
            prepared.append(prepare_run(entry, child, *load_data(child, cache)))
    same_resources([run.config for run in prepared])
    return prepared


def check(config: Config) -> None:
    """Find what is wrong with a configuration before Ray starts: all that ``prepare`` would find, but for the pixels.

    Runs that differ in nothing but their seeds are looked at once. A user's own data set is made later: it may take long.

    Raises:
        ConfigError: see its message.
    """
    looked_at: set[str] = set()
    cache: dict[str, Any] = {}
    configs = [child for _, child in children(config)]
    same_resources(configs)
    for child in configs:
        check_callbacks(child)
        what = child.model_dump_json(exclude={"seed", "name", "tracking", "checkpoint"})
        if what not in looked_at:
            with _naming(config, child):
                if is_own(child.data.name):
                    own_loader(child.data)
                    _check_own_code(child)
                else:
                    prepare_run("", child, *load_data(child, cache, pixels=False))
        looked_at.add(what)


@contextmanager
def _naming(config: Config, child: Config) -> Iterator[None]:
    """An error about a run of a study says which it is."""
    try:
        yield
    except ConfigError as error:
        if config.study is None:
            raise
        raise ConfigError(*(f"study entry {child.name!r}: {problem}" for problem in error.problems)) from error


def data_warnings(runs: list[PreparedRun]) -> list[str]:
    """A line for whatever makes results on these data doubtful; each data set and split is looked at once."""
    notes = dict.fromkeys(note for run in runs for note in run.dataset.notes)
    splits = {run.partition.digest: run for run in runs if run.config.data.partition.name == "file"}
    return [*notes] + [
        f"data.partition.path: {run.config.data.partition.path}: {problem}"
        for run in splits.values()
        for problem in run.partition.overlaps
    ]


def prepare_run(entry: str, config: Config, dataset: Dataset, partition: Partition) -> PreparedRun:
    """Check a run on data that is already loaded; ``config.data`` is then only a description.

    Raises:
        ConfigError: the model can't be built or doesn't fit the data or the algorithm.
    """
    # Not at the top: timm takes two seconds, in which the actors start.
    from raysim.models.build import build_model, has_batch_norm, tokens_per_image
    from raysim.models.normalization import with_normalization

    _check_own_code(config)
    _check_validation(config, partition)
    model = build_model(config.model, config.algorithm, dataset.num_classes, dataset.images.shape[3], config.seed)
    layout, tensors = layout_of(model, config.algorithm), model.state_dict()
    if not layout.num_shared and not config.algorithm.shares_nothing:
        raise ConfigError(
            f"algorithm.personal: {config.algorithm.name} would share nothing; that is the method 'local'"
        )
    if config.train.optimizer.personal_lr is not None and not (
        layout.num_personal or config.algorithm.trains_own_model
    ):
        raise ConfigError(
            f"train.optimizer.personal_lr: {config.algorithm.name} has no personal parameters that train.optimizer trains"
        )
    if (config.model.pretrained or config.model.weights) and (why := config.algorithm.needs_drawn_parameters()):
        raise ConfigError(f"model: pretrained parameters are of no use to {config.algorithm.name}: {why}")
    theta = layout.flatten(tensors)
    config.algorithm.client_state(theta, layout)  # what a method misses in this model or these patterns, it says here
    samples = partition.num_train[: config.data.num_clients]
    check_uploads(config, model, layout, theta, samples, dataset.num_classes)
    initial, frozen = theta.numpy(), {name: tensors[name].numpy() for name in layout.frozen}
    check_augmentation(config.data.augment, dataset.images)
    if has_batch_norm(model):
        if config.resources.compile:
            raise ConfigError(
                f"resources.compile: the training of BatchNorm layers ({config.model.name}) is not compiled"
            )
        _check_batch_norm(config, partition)
        size = 1
    else:
        size = clients_per_batch(config, layout.num_parameters, tokens_per_image(model, config.model.image_size))
    config = with_normalization(config, dataset.images.shape[3], pretrained_cfg(model))
    auto_batches = config.resources.clients_per_batch == "auto" and not has_batch_norm(model)
    resolved = with_clients_per_batch(config, size)
    return PreparedRun(entry, resolved, dataset, partition, layout, initial, frozen, auto_batches)


def _check_own_code(config: Config) -> None:
    """That all that is a user's own can be imported, and is of the kind that it should be."""
    for key, name in config.own_names:
        if key in ("algorithm.name", "algorithm.plugin", "callbacks"):  # see check_callbacks
            check_travels(imported(name, key), name, key)
        else:
            own_function(name, key)
    make_optimizer(config.train.optimizer, config.train.optimizer.lr)
    algorithm_digest(config)


def _check_validation(config: Config, partition: Partition) -> None:
    if config.train.patience is not None and partition.num_validation is None:
        raise ConfigError(
            "train.patience: goes by validation samples, and there are none: set data.validation_fraction, such as 0.2"
        )


def _check_batch_norm(config: Config, partition: Partition) -> None:
    """A model with BatchNorm trains one client at a time: padding or other clients' samples would change its statistics.

    Raises:
        ConfigError: the configuration asks for several at a time, or a client would have a batch of one sample.
    """
    if config.resources.clients_per_batch not in ("auto", 1):
        raise ConfigError(
            f"resources.clients_per_batch: {config.model.name} has BatchNorm layers, so its clients train one by one: "
            f"take 1 or auto, not {config.resources.clients_per_batch}"
        )
    if config.algorithm.held_back():
        raise ConfigError(
            f"algorithm.name: {config.algorithm.name} holds samples back by masking them, and BatchNorm layers "
            f"({config.model.name}) would take their statistics all the same"
        )
    why = f"the BatchNorm layers of {config.model.name} can't take statistics of one sample"
    least = 2 * config.algorithm.batches_per_step
    if config.train.batch_size < 2:
        raise ConfigError(f"train.batch_size: {why}; take 2 or more")
    if len(few := np.flatnonzero(partition.num_train < least)):
        raise ConfigError(
            f"data: client {few[0]} has {partition.num_train[few[0]]} training samples, and {config.algorithm.name} needs "
            f"{least}: {why}. Raise data.partition.min_samples"
        )
