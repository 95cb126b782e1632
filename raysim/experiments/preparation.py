"""From a configuration to runs that are ready: data, model, resources, actors.

Everything that can be wrong with the configuration or the data is found in ``prepare``, before any actor is started.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from raysim.workers.actor_pool import ActorPool, Stopped
from raysim.config.schema import Config, DataConfig, ResourcesConfig
from raysim.config.loading import children
from raysim.data.dataset import Dataset
from raysim.data.partition import Partition
from raysim.data.partitioners import make_partition
from raysim.data.sources import load_dataset
from raysim.workers.dispatch import PATIENCE_SECONDS
from raysim.errors import ConfigError
from raysim.functional.parameters import ParameterLayout
from raysim.workers.resources import CUDA_ENVIRONMENT, clients_per_batch, place, room, same_resources
from raysim.training.tasks import RunSetup, algorithm_code
from raysim.workers.gpu_trial import MOST_ACTORS_PER_GPU, Choice, TrialActor


@dataclass(frozen=True)
class RunSpec:
    """A run that is ready for its first round."""

    entry: str
    """Name of the study entry, the same for all its seeds."""
    setup: RunSetup
    layout: ParameterLayout
    dataset_digest: str
    class_names: tuple[str, ...]
    class_counts: NDArray[np.int64]
    """(N, classes)"""
    domains: NDArray[np.str_]
    may_vectorise: bool
    """Whether ``clients_per_batch`` was chosen by raysim, so that it may choose a smaller one."""

    @property
    def config(self) -> Config:
        return self.setup.config

    @property
    def state_size(self) -> int:
        """Float32 numbers of a client's state."""
        from torch import zeros

        state = self.config.algorithm.client_state(zeros(self.layout.num_parameters), self.layout)
        return sum(vector.numel() for vector in state.values())


@dataclass(frozen=True)
class Prepared:
    """A run that has been checked: data loaded and divided, model built, ``clients_per_batch`` resolved."""

    entry: str
    config: Config
    dataset: Dataset
    partition: Partition
    layout: ParameterLayout
    initial: NDArray[np.float32]
    """(P,), the initial parameters."""
    frozen: dict[str, NDArray[np.float32]]
    """Parameters that are not among them."""
    may_vectorise: bool
    """Whether ``clients_per_batch`` is raysim's to choose."""


def prepare(config: Config) -> list[Prepared]:
    """Check everything about every run of a configuration; equal data sets are loaded once.

    Raises:
        ConfigError: see its message.
    """
    cache: dict[str, Any] = {}
    prepared = []
    for entry, child in children(config):
        try:
            prepared.append(prepare_on(entry, child, *load_data(child, cache)))
        except ConfigError as error:
            if config.study is None:
                raise
            raise ConfigError(*(f"study entry {child.name!r}: {problem}" for problem in error.problems)) from error
    same_resources([run.config for run in prepared])
    return prepared


def prepare_on(entry: str, config: Config, dataset: Dataset, partition: Partition) -> Prepared:
    """Check a run on data that is already there, which ``config.data`` then only describes.

    Raises:
        ConfigError: the model can't be built or doesn't fit the data or the algorithm.
    """
    # Imported where they are used: timm takes two seconds, in which Ray is started.
    from raysim.models.build import build_model, has_batch_norm, tokens_per_image
    from raysim.training.engine import layout_of

    model = build_model(config.model, config.algorithm, dataset.num_classes, dataset.images.shape[3], config.seed)
    layout, tensors = layout_of(model, config.algorithm), model.state_dict()
    initial, frozen = layout.flatten(tensors).numpy(), {name: tensors[name].numpy() for name in layout.frozen}
    if has_batch_norm(model):
        if config.resources.compile:
            raise ConfigError(
                f"resources.compile: the training of BatchNorm layers ({config.model.name}) is not compiled"
            )
        size = _one_by_one(config, partition)
    else:
        size = clients_per_batch(config, layout.num_parameters, tokens_per_image(model, config.model.image_size))
    resources = config.resources.model_copy(update={"clients_per_batch": size})
    resolved = config.model_copy(update={"resources": resources})
    may_vectorise = config.resources.clients_per_batch == "auto" and not has_batch_norm(model)
    return Prepared(entry, resolved, dataset, partition, layout, initial, frozen, may_vectorise)


def _one_by_one(config: Config, partition: Partition) -> int:
    """``clients_per_batch`` of a model with BatchNorm: padding or other clients' samples would change its statistics."""
    if config.resources.clients_per_batch not in ("auto", 1):
        raise ConfigError(
            f"resources.clients_per_batch: {config.model.name} has BatchNorm layers, so its clients train one by one: "
            f"take 1 or auto, not {config.resources.clients_per_batch}"
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
    return 1


class Launch:
    """Places the runs of a configuration: its actors start while the runs are prepared, unless a GPU must be tried first.

    Args:
        uri: of the MLflow store, written into the configurations.
        stop, say: see ``ActorPool``.
        patient: a cluster that has not all that ``resources`` asks for is waited for.

    Raises:
        ConfigError: the cluster can't give what ``resources`` asks for.
    """

    def __init__(
        self,
        config: Config,
        import_path: list[str],
        uri: str,
        stop: threading.Event,
        say: Callable[[str], None],
        patient: bool = False,
    ) -> None:
        self._config, self._import_path, self._uri, self._stop, self._say = config, import_path, uri, stop, say
        self._patient = patient
        configs = [child for _, child in children(config)]
        self._resources = same_resources(configs)
        most = max(_most_batches(child) for child in configs)
        self._runs = len(configs)
        self._placement = place(self._resources, most, patient=patient, runs=self._runs)
        self._at_a_time = 1
        self.pool: ActorPool | None = None
        if self._placement.resources.device == "cpu":
            self.pool = self._pool()

    def _pool(self) -> ActorPool:
        return ActorPool(self._size, self._placement.actor_options, self._import_path, self._stop, self._say)

    def _wait(self, ref: ray.ObjectRef) -> Any:
        """The answer of an actor for which there may be no free GPU for a while."""
        patience = time.monotonic() + PATIENCE_SECONDS
        while not ray.wait([ref], timeout=0.5)[0]:
            if self._stop.is_set():
                raise Stopped
            if time.monotonic() > patience:
                self._say("waiting for a GPU on which to try a step: is the cluster busy?")
                patience = time.monotonic() + PATIENCE_SECONDS
        return ray.get(ref)

    def _size(self) -> int:
        """Asked again when nodes join."""
        if self._resources.num_actors != "auto":
            return self._resources.num_actors
        own = self._placement.resources
        have = room(own, own.device, own.num_gpus_per_actor, self._placement.actors_per_gpu)
        return max(1, min(self._placement.most_batches, have // self._at_a_time))

    def specs(self, runs: list[Prepared]) -> tuple[Config, list[RunSpec], list[ActorPool]]:
        """Put the runs' data into the object store; the configurations come back with nothing ``auto``.

        There is a pool of actors for each run that is under way at a time.

        Raises:
            ConfigError: an actor's share of a GPU does not fit.
        """
        specs, per_gpu, resources = _specs(runs), 1, self._resources
        packs = resources.num_actors == resources.num_gpus_per_actor == "auto"
        if self.pool is None and (packs or any(spec.may_vectorise for spec in specs)):
            specs, per_gpu = _after_a_trial(specs, self._import_path, self._wait)
        most = max(_most_batches(spec.config) for spec in specs)
        self._placement = place(resources, most, per_gpu, self._patient, self._runs)
        specs = [with_config(spec, _resolved(spec.config, self._placement.resources, self._uri)) for spec in specs]
        at_a_time = self._placement.resources.concurrent_runs
        assert at_a_time != "auto"
        self._at_a_time = at_a_time
        if self.pool is None:
            self.pool = self._pool()
        pools = self.pool.split(self._at_a_time)  # it was started before the size of client batches was known
        return _resolved(self._config, self._placement.resources, self._uri), specs, pools


def _most_batches(config: Config) -> int:
    """Client batches of a round, of training or of evaluation, whichever are more; their upper bound if it is not known."""
    asked = config.evaluate.clients
    evaluated = {"all": config.data.num_clients, "cohort": config.cohort_size}.get(str(asked), 0) or int(asked)
    size = config.resources.clients_per_batch
    return -(-max(config.cohort_size, evaluated) // (1 if size == "auto" else size))


def _resolved(config: Config, resources: ResourcesConfig, uri: str) -> Config:
    """With the actors' resources and the store written in; ``clients_per_batch`` as the run itself has it."""
    own = resources.model_copy(update={"clients_per_batch": config.resources.clients_per_batch})
    tracking = config.tracking.model_copy(update={"uri": uri})
    return config.model_copy(update={"resources": own, "tracking": tracking})


def _specs(runs: list[Prepared]) -> list[RunSpec]:
    """Put every array that actors read into the object store, each only once."""
    refs: dict[int, ray.ObjectRef] = {}

    def put(value: Any) -> ray.ObjectRef:
        if id(value) not in refs:
            refs[id(value)] = ray.put(value)
        return refs[id(value)]

    specs = []
    for run in runs:
        data, partition = run.dataset, run.partition
        arrays = (put(data.images), put(data.labels), put(partition), ray.put(run.initial), ray.put(run.frozen))
        setup = RunSetup(run.config, *arrays, data.num_classes, data.images.shape[3], algorithm_code(run.config))
        counts = partition.class_counts(data.labels, data.num_classes)
        domains = partition.client_domains(data)
        specs.append(
            RunSpec(run.entry, setup, run.layout, data.digest, data.class_names, counts, domains, run.may_vectorise)
        )
    return specs


def with_config(spec: RunSpec, config: Config) -> RunSpec:
    return replace(spec, setup=replace(spec.setup, config=config))


def _after_a_trial(
    specs: list[RunSpec], import_path: list[str], wait: Callable[[ray.ObjectRef], Any]
) -> tuple[list[RunSpec], int]:
    """``clients_per_batch`` of each run by the memory that a step takes on a GPU, and how many actors then share one."""
    actor_class: Any = TrialActor  # Ray's decorator adds `options`
    sized, per_gpu = [], MOST_ACTORS_PER_GPU
    for spec in specs:
        actor = actor_class.options(num_gpus=1, runtime_env=CUDA_ENVIRONMENT).remote(import_path)
        share = {"device": "cuda", "num_gpus_per_actor": 1 / MOST_ACTORS_PER_GPU}
        resources = spec.config.resources.model_copy(update=share)
        setup = replace(spec.setup, config=spec.config.model_copy(update={"resources": resources}))
        asked = None if spec.may_vectorise else int(spec.config.resources.clients_per_batch)
        choice: Choice = wait(actor.choose.remote(setup, asked))
        ray.kill(actor)
        resources = spec.config.resources.model_copy(update={"clients_per_batch": choice.clients_per_batch})
        sized.append(with_config(spec, spec.config.model_copy(update={"resources": resources})))
        per_gpu = min(per_gpu, choice.actors_per_gpu)
    return sized, per_gpu
