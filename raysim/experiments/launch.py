"""Places the runs of a configuration on the cluster: starts actors, shares the data with them, leaves nothing ``auto``.

``workers/auto_resources.py`` has the rules; this module applies each of them as soon as its inputs are known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from raysim.config.loading import children
from raysim.config.schema import Config
from raysim.config.sections.running import ResourcesConfig
from raysim.errors import Stopped
from raysim.experiments.preparation import PreparedRun
from raysim.functional.parameters import ParameterLayout
from raysim.own_code import OwnCode
from raysim.training.step_memory import MOST_ACTORS_PER_GPU, Choice
from raysim.workers.actor_pool import PATIENCE_SECONDS, ActorPool
from raysim.workers.auto_resources import (
    CUDA_ENVIRONMENT,
    batches_on_gpus,
    resolve_resources,
    same_resources,
    with_clients_per_batch,
)
from raysim.workers.cluster import room
from raysim.workers.gpu_trial import TrialActor
from raysim.workers.run_setup import RunSetup
from raysim.workers.worker import Worker


@dataclass(frozen=True)
class PlacedRun:
    """A run that is ready for its first round: a ``PreparedRun`` whose arrays are in the object store.

    Attributes:
        setup: what actors get; its ``config`` has nothing left ``auto``.
        digests: see ``PreparedRun.digests``.
        class_counts: (N, classes) samples of every client.
        domains: (N,) names.
    """

    entry: str
    setup: RunSetup
    layout: ParameterLayout
    digests: dict[str, str]
    class_names: tuple[str, ...]
    class_counts: NDArray[np.int64]
    domains: NDArray[np.str_]
    auto_batches: bool

    @property
    def config(self) -> Config:
        return self.setup.config

    @property
    def state_size(self) -> int:
        """Float32 numbers of a client's state."""
        state = self.config.algorithm.client_state(torch.zeros(self.layout.num_parameters), self.layout)
        return sum(vector.numel() for vector in state.values())

    def with_config(self, config: Config) -> PlacedRun:
        """The same run with other values that change nothing of its data or model."""
        return replace(self, setup=replace(self.setup, config=config))

    def with_batches_of(self, size: int) -> PlacedRun:
        """The same run with another ``clients_per_batch``, if that is raysim's choice."""
        return self.with_config(with_clients_per_batch(self.config, size)) if self.auto_batches else self


@dataclass(frozen=True)
class KeptActors:
    """Actors that are left running for another launch.

    Attributes:
        options: Ray's, with which they were started.
    """

    workers: list[Worker]
    options: dict[str, Any]


class Launch:
    """Starts the actors of a configuration's runs, while the runs are prepared unless a GPU must be tried first.

    Args:
        uri: of the MLflow store, written into the configurations.
        stop, notify: see ``ActorPool``.
        patient: wait for a cluster that does not have all that ``resources`` asks for.
        kept: actors of an earlier launch, used if they are on CPUs and have the same options.

    Raises:
        ConfigError: the cluster can't give what ``resources`` asks for.
    """

    def __init__(
        self,
        config: Config,
        code: OwnCode,
        uri: str,
        stop: threading.Event,
        notify: Callable[[str], None],
        patient: bool = False,
        kept: KeptActors | None = None,
    ) -> None:
        self._config, self._code, self._uri, self._stop, self._notify = config, code, uri, stop, notify
        self._patient = patient
        configs = [child for _, child in children(config)]
        self._resources = same_resources(configs)
        self._runs = len(configs)
        most = max(most_batches_of(child) for child in configs)
        self._placement = resolve_resources(self._resources, most, patient=patient, runs=self._runs)
        self._concurrent_runs = 1
        self.pool: ActorPool | None = None
        on_cpu = self._placement.resources.device == "cpu"
        workers = kept.workers if kept is not None else []
        if workers and not (on_cpu and kept is not None and kept.options == self._placement.actor_options):
            for worker in workers:
                ray.kill(worker.handle)
            workers = []
        if on_cpu:
            self.pool = self._start_pool(workers)

    def _start_pool(self, workers: Sequence[Worker] = ()) -> ActorPool:
        options = self._placement.actor_options
        return ActorPool(self._num_actors, options, self._code, self._stop, self._notify, workers)

    def keep(self, pools: Sequence[ActorPool]) -> KeptActors:
        """The actors of these pools, which have none from now on."""
        workers = [worker for pool in pools for worker in pool.workers]
        for pool in pools:
            pool.workers = []
        return KeptActors(workers, self._placement.actor_options)

    def _num_actors(self) -> int:
        """The size of a pool; called again when nodes join."""
        if self._resources.num_actors != "auto":
            return self._resources.num_actors
        own = self._placement.resources
        have = room(own, own.device, own.num_gpus_per_actor, self._placement.actors_per_gpu)
        return max(1, min(self._placement.most_batches, have // self._concurrent_runs))

    def place(self, runs: list[PreparedRun]) -> tuple[Config, list[PlacedRun], list[ActorPool]]:
        """Put the runs' data into the object store; the configurations come back with nothing ``auto``.

        There is a pool of actors for each run that is under way at a time.

        Raises:
            ConfigError: an actor's share of a GPU does not fit.
        """
        placed, per_gpu, resources = _in_object_store(runs), 1, self._resources
        packs = resources.num_actors == resources.num_gpus_per_actor == "auto"
        if self.pool is None and (packs or any(run.auto_batches for run in placed)):
            placed, per_gpu = self._after_trials(placed)
        most = max(most_batches_of(run.config) for run in placed)
        self._placement = resolve_resources(resources, most, per_gpu, self._patient, self._runs)
        own = self._placement.resources
        placed = [run.with_config(_resolved(run.config, own, self._uri)) for run in placed]
        assert own.concurrent_runs != "auto"
        self._concurrent_runs = own.concurrent_runs
        if self.pool is None:
            self.pool = self._start_pool()
        pools = self.pool.split(self._concurrent_runs)  # it was started before the size of client batches was known
        return _resolved(self._config, own, self._uri), placed, pools

    def _after_trials(self, runs: list[PlacedRun]) -> tuple[list[PlacedRun], int]:
        """``clients_per_batch`` of each run by the memory that a step takes on a GPU, and how many actors share one."""
        actor_class: Any = TrialActor  # Ray's decorator adds `options`
        actor = actor_class.options(num_gpus=1, runtime_env=CUDA_ENVIRONMENT).remote(self._code)
        share = {"device": "cuda", "num_gpus_per_actor": 1 / MOST_ACTORS_PER_GPU}
        choices: dict[str, Choice] = {}
        sized = []
        for run in runs:
            key = f"{_what_takes_memory(run.config)} {run.digests['partition']}"  # the largest clients are tried
            if key not in choices:
                resources = run.config.resources.model_copy(update=share)
                setup = run.with_config(run.config.model_copy(update={"resources": resources})).setup
                asked = None if run.auto_batches else int(run.config.resources.clients_per_batch)
                batches = batches_on_gpus(self._resources, self._runs)
                choices[key] = self._answer(actor.choose.remote(setup, asked, batches))
            sized.append(run.with_config(with_clients_per_batch(run.config, choices[key].clients_per_batch)))
        ray.kill(actor)
        return sized, min(choice.actors_per_gpu for choice in choices.values())

    def _answer(self, ref: ray.ObjectRef) -> Choice:
        """Wait for the answer of a trial actor, which may have to wait for a free GPU."""
        patience = time.monotonic() + PATIENCE_SECONDS
        while not ray.wait([ref], timeout=0.5)[0]:
            if self._stop.is_set():
                raise Stopped
            if time.monotonic() > patience:
                self._notify("waiting for a GPU on which to try a step: is the cluster busy?")
                patience = time.monotonic() + PATIENCE_SECONDS
        choice: Choice = ray.get(ref)
        return choice


def _what_takes_memory(config: Config) -> str:
    """Equal for runs whose steps take the same memory; they may differ in seed, learning rate or number of rounds."""
    of_training: Any = {
        "batch_size": True,
        "local_epochs": True,
        "optimizer": {"name", "momentum", "weight_decay", "clip_norm"},
    }
    sections: Any = {
        "data": True,
        "model": True,
        "algorithm": True,
        "cohort": True,
        "evaluate": True,
        "resources": True,
    }
    return config.model_dump_json(include={**sections, "train": of_training})


def most_batches_of(config: Config) -> int:
    """The most client batches of a round, in training or evaluation; an upper bound while their size is not known."""
    asked = config.evaluate.clients
    evaluated = {"all": config.data.num_clients, "cohort": config.cohort_size}.get(str(asked), 0) or int(asked)
    size = config.resources.clients_per_batch
    return -(-max(config.cohort_size, evaluated) // (1 if size == "auto" else size))


def _resolved(config: Config, resources: ResourcesConfig, uri: str) -> Config:
    """The configuration with the actors' resources and the store written in; it keeps its own ``clients_per_batch``."""
    own = resources.model_copy(update={"clients_per_batch": config.resources.clients_per_batch})
    tracking = config.tracking.model_copy(update={"uri": uri})
    return config.model_copy(update={"resources": own, "tracking": tracking})


def _in_object_store(runs: list[PreparedRun]) -> list[PlacedRun]:
    """Put every array that actors read into the object store, each only once."""
    refs: dict[int, ray.ObjectRef] = {}

    def put(value: Any) -> ray.ObjectRef:
        if id(value) not in refs:
            refs[id(value)] = ray.put(value)
        return refs[id(value)]

    placed = []
    for run in runs:
        data, partition = run.dataset, run.partition
        images = put(data.images) if not data.cache else ray.put(data.cache)
        arrays = (images, put(data.labels), put(partition), ray.put(run.initial), ray.put(run.frozen))
        digests, channels = run.digests, data.images.shape[3]
        setup = RunSetup(
            run.config,
            *arrays,
            data.num_classes,
            channels,
            digests["algorithm"],
            data.known_digest if data.cache else "",
        )
        counts = partition.class_counts(data.labels, data.num_classes)
        domains = partition.client_domains(data.domains, data.domain_names)
        placed.append(
            PlacedRun(run.entry, setup, run.layout, digests, data.class_names, counts, domains, run.auto_batches)
        )
    return placed
