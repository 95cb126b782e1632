"""From a configuration to results: prepare every run, place the actors, start the driver, watch it.

Everything that can be wrong with the configuration or the data is found in ``prepare``, before any actor is started.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError

from raysim.compare import compare
from raysim.config import Config, DataConfig, ResourcesConfig
from raysim.config_file import children
from raysim.data.partitions import Partition, make_partition
from raysim.data.sources import Dataset, load_dataset
from raysim.driver import Driver, Job, RunResult, RunSpec, Status
from raysim.errors import ConfigError
from raysim.parameters import ParameterLayout
from raysim.resources import CUDA_ENVIRONMENT, clients_per_batch, connect, place, same_resources
from raysim.tasks import RunSetup
from raysim.tracking import git_commit, resolve_uri
from raysim.trial import MOST_ACTORS_PER_GPU, Choice, TrialActor

POLL_SECONDS = 0.2
STOP_SECONDS = 30  # for closing the MLflow run after Ctrl-C


class RunFailed(RuntimeError):
    """A run ended with an error; the message is the driver's."""


class RunKilled(RuntimeError):
    """A run was stopped before its end; it is closed as KILLED in MLflow."""


@dataclass(frozen=True)
class Result:
    """A finished run, or all runs of a study.

    Attributes:
        runs: each with its history, table of clients, final shared parameters and checksums.
        history: a row per run and round: ``name``, ``seed``, ``run_id``, ``round``, then every metric as in MLflow.
        tracking_uri, experiment, parent_run_id: where it is logged; the parent run is None without a study.
    """

    runs: list[RunResult]
    history: pd.DataFrame
    tracking_uri: str
    experiment: str
    parent_run_id: str | None

    @property
    def table(self) -> pd.DataFrame:
        """The comparison: a row per entry of the study, mean and standard deviation over seeds."""
        return compare(self.history)


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
            prepared.append(_prepare_one(entry, child, cache))
        except ConfigError as error:
            if config.study is None:
                raise
            raise ConfigError(*(f"study entry {child.name!r}: {problem}" for problem in error.problems)) from error
    same_resources([run.config for run in prepared])
    return prepared


def _prepare_one(entry: str, config: Config, cache: dict[str, Any]) -> Prepared:
    """``cache`` has the data sets and partitions of earlier runs."""
    source = _source_key(config.data, config.model.image_size)
    if source not in cache:
        cache[source] = load_dataset(config.data, config.model.image_size)
    dataset: Dataset = cache[source]
    split = f"{source} {config.data.model_dump_json()} {config.seed}"
    if split not in cache:
        cache[split] = make_partition(config.data, dataset, config.seed)
    return prepare_on(entry, config, dataset, cache[split])


def prepare_on(entry: str, config: Config, dataset: Dataset, partition: Partition) -> Prepared:
    """Check a run on data that is already there, which ``config.data`` then only describes.

    Raises:
        ConfigError: the model can't be built or doesn't fit the data or the algorithm.
    """
    # Imported where they are used: timm takes two seconds, in which Ray is started.
    from raysim.models.build import build_model, has_batch_norm, tokens_per_image
    from raysim.training import layout_of

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


def _source_key(data: DataConfig, image_size: int) -> str:
    """Equal for two runs that use the same samples."""
    size = image_size if data.name == "image_folder" else None  # only there it may decide what is stored
    clients = data.num_clients if data.name == "federated_npz" else None
    return f"{data.name} {data.root} {data.subset} {data.rotated_domains} {size} {clients} {data.allow_legacy_pickle}"


def run(config: Config, watch: Callable[[Status, list[str]], None] | None = None) -> Result:
    """Run a configuration, alone or as a study, and return its results; blocks until the end.

    Uses the Ray cluster that this process is connected to, or that RAY_ADDRESS names; otherwise it starts a local one
    and shuts it down at the end.

    Args:
        watch: called about five times a second with the driver's status and the names of all runs.

    Raises:
        ConfigError: something is wrong with the configuration, the data or the resources; no run was started.
        RunFailed: a run failed, for instance because an algorithm raised.
        RunKilled: ``KeyboardInterrupt`` came while it ran.
    """
    with ThreadPoolExecutor(1) as thread:
        preparing = thread.submit(prepare, config)  # while Ray starts, which is mostly waiting
        started, warning = connect(config.resources)
        try:
            runs = preparing.result()
            if warning:
                print(warning, file=sys.stderr)
            return _run(config, runs, watch)
        finally:
            if started:
                ray.shutdown()


def start(actor_class: Any, config: Config, runs: list[Prepared]) -> tuple[Any, Job]:
    """Place the runs on the cluster and start the actor that drives them: ``Driver``, or one like it.

    Raises:
        ConfigError: the cluster can't give what ``resources`` asks for.
    """
    resources, uri = same_resources([r.config for r in runs]), resolve_uri(config.tracking)
    import_path = [os.getcwd(), *(entry for entry in sys.path if entry)]
    specs = _specs(runs)
    # Before a trial, too: without a GPU it would wait for ever.
    placement = place(resources, max(_most_batches(spec.config) for spec in specs))
    packs = resources.num_actors == resources.num_gpus_per_actor == "auto"
    if placement.resources.device == "cuda" and (packs or any(spec.may_vectorise for spec in specs)):
        specs, per_gpu = _after_a_trial(specs, import_path)
        placement = place(resources, max(_most_batches(spec.config) for spec in specs), per_gpu)
    specs = [_with_config(spec, _resolved(spec.config, placement.resources, uri)) for spec in specs]
    job = Job(_resolved(config, placement.resources, uri), specs, uri, git_commit(Path.cwd()))
    assert isinstance(placement.resources.num_actors, int)
    driver = actor_class.options(**placement.driver_options).remote(
        [ray.put(job)], placement.resources.num_actors, placement.actor_options, import_path
    )
    return driver, job


def _run(config: Config, runs: list[Prepared], watch: Callable[[Status, list[str]], None] | None) -> Result:
    driver, job = start(Driver, config, runs)
    try:
        status = _watch(driver, [spec.config.name for spec in job.runs], watch)
        if status.state == "failed":
            raise RunFailed(status.error)
        if status.state == "killed":
            raise RunKilled("the run was stopped; it is closed as KILLED in MLflow")
        results, parent = ray.get(driver.results.remote())
    except BaseException:
        _stop(driver)
        raise
    finally:
        ray.kill(driver)
    history = pd.concat([result.history for result in results], ignore_index=True)
    return Result(results, history, job.tracking_uri, job.experiment, parent)


def _stop(driver: Any) -> None:
    """Let the driver close its MLflow runs before it is killed, whatever ended the command (a closed pipe, a bug)."""
    deadline = time.monotonic() + STOP_SECONDS
    try:
        driver.stop.remote()
        while ray.get(driver.status.remote(0)).state in ("starting", "running") and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    except RayError:
        pass  # the driver is gone: there is nothing to wait for


def _most_batches(config: Config) -> int:
    """Client batches of a round, of training or of evaluation, whichever are more."""
    asked = config.evaluate.clients
    evaluated = {"all": config.data.num_clients, "cohort": config.cohort_size}.get(str(asked), 0) or int(asked)
    return -(-max(config.cohort_size, evaluated) // int(config.resources.clients_per_batch))


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
        setup = RunSetup(run.config, *arrays, data.num_classes, data.images.shape[3], Path())
        counts = partition.class_counts(data.labels, data.num_classes)
        domains = partition.client_domains(data)
        specs.append(
            RunSpec(run.entry, setup, run.layout, data.digest, data.class_names, counts, domains, run.may_vectorise)
        )
    return specs


def _with_config(spec: RunSpec, config: Config) -> RunSpec:
    return replace(spec, setup=replace(spec.setup, config=config))


def _after_a_trial(specs: list[RunSpec], import_path: list[str]) -> tuple[list[RunSpec], int]:
    """``clients_per_batch`` of each run by the memory that a step takes on a GPU, and how many actors then share one."""
    actor_class: Any = TrialActor  # Ray's decorator adds `options`
    sized, per_gpu = [], MOST_ACTORS_PER_GPU
    for spec in specs:
        actor = actor_class.options(num_gpus=1, runtime_env=CUDA_ENVIRONMENT).remote(import_path)
        share = {"device": "cuda", "num_gpus_per_actor": 1 / MOST_ACTORS_PER_GPU}
        resources = spec.config.resources.model_copy(update=share)
        setup = replace(spec.setup, config=spec.config.model_copy(update={"resources": resources}))
        asked = None if spec.may_vectorise else int(spec.config.resources.clients_per_batch)
        choice: Choice = ray.get(actor.choose.remote(setup, asked))
        ray.kill(actor)
        resources = spec.config.resources.model_copy(update={"clients_per_batch": choice.clients_per_batch})
        sized.append(_with_config(spec, spec.config.model_copy(update={"resources": resources})))
        per_gpu = min(per_gpu, choice.actors_per_gpu)
    return sized, per_gpu


def _watch(driver: Any, names: list[str], watch: Callable[[Status, list[str]], None] | None) -> Status:
    """Poll the driver until it is done; on Ctrl-C ask it to stop and wait until its MLflow run is closed."""
    deadline, seen = None, 0
    while True:
        try:
            status: Status = ray.get(driver.status.remote(seen))
            seen += len(status.finished)
            if watch:
                watch(status, names)
            if status.state in ("finished", "failed", "killed"):
                return status
            if deadline is not None and time.monotonic() > deadline:
                raise RunKilled(f"the run did not stop within {STOP_SECONDS} seconds; its MLflow run may be left open")
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if deadline is not None:
                raise
            deadline = time.monotonic() + STOP_SECONDS
            driver.stop.remote()
        except RayError as error:
            raise RunFailed(f"the driver actor is gone: {error}") from error
