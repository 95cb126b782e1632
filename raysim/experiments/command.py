"""``run``, ``resume`` and ``attach``: start a driver, or find a running one, and watch it until its runs are over."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysim.config.loading import children, config_of
from raysim.config.locations import checkpoint_root, home, in_ray_job, resolve_uri
from raysim.config.schema import Config
from raysim.config.sections.running import ResourcesConfig, TrackingConfig
from raysim.errors import ConfigError
from raysim.experiments.callbacks.callback import Callback
from raysim.experiments.callbacks.making import check_objects
from raysim.experiments.driver import NAMESPACE, Driver
from raysim.experiments.finished import finished_results
from raysim.experiments.notebook import shown
from raysim.experiments.preparation import check
from raysim.experiments.results import Result
from raysim.experiments.session import Reusable, current
from raysim.experiments.study import StudyRequest
from raysim.experiments.watch_driver import RunFailed, Watch, results_of
from raysim.own_code import own_code
from raysim.storage.folder import Folder
from raysim.storage.study_folder import (
    StudyFolder,
    StudyState,
    check_checkpoints,
    differences,
    new_name,
    new_state,
    unfinished,
)
from raysim.tracking.mlflow_reader import checkpoint_of
from raysim.tracking.mlflow_store import MLflowStore, check_address
from raysim.tracking.tags import git_commit
from raysim.workers.cluster import connect, logical_cpus, using_ray


def run(config: Config, watch: Watch | None = None, fresh: bool = False, callbacks: Sequence[Callback] = ()) -> Result:
    """Run a configuration, alone or as a study, and return its results; blocks until the end.

    Uses the Ray cluster that this process is connected to, or that RAY_ADDRESS names; otherwise it starts a local one
    and shuts it down at the end. If a study with the same configuration was started before and has not finished, it is
    continued: its finished runs are skipped, and the others go on from their checkpoints.

    Args:
        watch: called about five times a second with the driver's status, the names of all runs, and their rounds. Default: in
            a notebook a view of the progress, elsewhere nothing.
        fresh: start a study over, even if an earlier start of it is unfinished.
        callbacks: what to do when something happens to a run, beside those that the configuration names; every run has a
            copy of each.

    Raises:
        ConfigError: something is wrong with the configuration, the data or the resources; no run was started.
        RunFailed: a run failed, for instance because an algorithm raised.
        RunKilled: ``KeyboardInterrupt`` came while it ran.
    """
    check(config)
    check_objects(callbacks)
    return start(config, watch, fresh, callbacks)


def start(
    config: Config,
    watch: Watch | None = None,
    fresh: bool = False,
    callbacks: Sequence[Callback] = (),
    tuning: str | None = None,
) -> Result:
    """``run`` of a configuration that was checked; ``tuning`` is the run in MLflow that trials belong to."""
    uri = resolve_uri(config.tracking)
    _print_where(config, uri)
    experiment = config.tracking.experiment or config.name
    state = new_state(config, uri, experiment, git_commit(Path.cwd()), tuning)
    folder, is_new = None, True
    if config.checkpoint.every is not None:
        root = checkpoint_root(config.checkpoint, uri)
        folder = unfinished(root, config, uri) if config.study is not None and not fresh else None
        is_new = folder is None
        if folder is not None:
            print(f"continuing {folder}, which is not finished (--fresh starts over)", file=sys.stderr)
            _update_request(StudyFolder(folder), config)
        folder = folder or StudyFolder(f"{root.rstrip('/')}/{new_name(config)}").uri
    if is_new:  # the store of a study that is continued may be back later
        check_address(uri)
    return _command(state, folder, watch, is_new, callbacks)


def resume(
    where: str,
    overrides: Sequence[str] = (),
    uri: str | None = None,
    from_round: int | None = None,
    watch: Watch | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Go on with runs that were interrupted, in the same MLflow runs.

    Args:
        where: an MLflow run id, of a study or of one of its runs, or the folder of its checkpoints.
        overrides: changes such as ``"resources.num_actors=2"``, of keys that change no result.
        uri: the MLflow store that has the run id.
        from_round: go back to the newest checkpoint after at most this many rounds.
        callbacks: as for ``run``; they are not kept with a run.

    Raises:
        ConfigError: there is nothing to go on with, a checkpoint is damaged, or a change would change results.
        RunFailed, RunKilled: as ``run``.
    """
    folder = find_folder(where, uri)
    state = _read(folder)
    config = config_of(state.config, overrides, f"{folder.uri}/study.json")
    asked = config.model_dump(mode="json")
    if (changed := differences(state.config, asked)) or asked["study"] != state.config["study"]:
        raise ConfigError(
            *(changed or ["study: has other entries"]),
            "the run can't go on with changes that change its results; start over with `raysim run --fresh`",
        )
    if config.checkpoint.every is None:
        raise ConfigError("checkpoint.every: must not be null for a run that continues from its checkpoints")
    check(config)
    check_objects(callbacks)
    state = _update_request(folder, config, verify=True, from_round=from_round)
    return _command(state, folder.uri, watch, False, callbacks)


def _update_request(
    folder: StudyFolder, config: Config, verify: bool = False, from_round: int | None = None
) -> StudyState:
    """Write the new configuration into ``study.json``, unless another process is working on the runs.

    ``verify``: their checkpoints first.
    """
    folder.lock()
    try:
        state = folder.read()
        assert state is not None
        more = config.rounds > state.config["rounds"]
        for line in check_checkpoints(folder, state, from_round, more) if verify else []:
            print(line, file=sys.stderr)
        state.config, state.starts, state.finished = config.model_dump(mode="json"), 0, False
        folder.write(state)
    finally:
        folder.unlock()
    return state


def find_folder(where: str, uri: str | None = None) -> StudyFolder:
    """The folder of a command's runs, found by its path, the path of one of its runs, or an MLflow run id.

    Raises:
        ConfigError: there is none.
    """
    place = where if "://" in where or Path(where).exists() else None
    if place is None:
        place = checkpoint_of(resolve_uri(TrackingConfig(uri=uri)), where)
    folder = StudyFolder(place)
    if folder.read() is None:  # a run's own folder lies in that of the command
        parent = StudyFolder(folder.uri.rsplit("/", 1)[0])
        folder = parent if parent.read() is not None else _the_unfinished_one_in(place)
    return folder


def _the_unfinished_one_in(place: str) -> StudyFolder:
    """Where ``checkpoint.dir`` itself is given: the one folder of checkpoints in it whose runs are not finished."""
    finished = {}
    for name in Folder(place).folders():
        with suppress(ConfigError):  # of another version; it is reported only if the user names it
            if (state := StudyFolder(f"{place.rstrip('/')}/{name}").read()) is not None:
                finished[name] = state.finished
    if not finished:
        raise ConfigError(f"{place}: is no folder of checkpoints: it has no study.json")
    if len(left := [name for name in finished if not finished[name]]) != 1:
        listed = "".join(f"\n  {name}{' (finished)' if done else ''}" for name, done in finished.items())
        raise ConfigError(f"{place}: has {len(finished)} folders of checkpoints; name one of them:{listed}")
    print(f"{left[0]} is the only one in {place} that is not finished", file=sys.stderr)
    return StudyFolder(f"{place.rstrip('/')}/{left[0]}")


def attach(where: str, uri: str | None = None, stop: bool = False, watch: Watch | None = None) -> Result:
    """Watch runs whose command is gone, on the cluster that RAY_ADDRESS names or that runs on this machine.

    Of runs that are finished by now it returns the results, from their last checkpoints and their tables in MLflow.

    Args:
        where, uri: as for ``resume``.
        stop: ask the runs to end.

    Raises:
        ConfigError: there is no cluster, or no driver of these runs on it though they are not finished; or a finished run
            has lost its last checkpoint.
        RunFailed, RunKilled: as ``run``.
    """
    folder = find_folder(where, uri)
    try:
        return _watch_their_driver(folder, stop, watch)
    except (ConfigError, RunFailed):
        if not _read(folder).finished:
            raise  # else whoever watched them, or nobody for a minute, has ended their driver
    print(f"the runs of {folder.uri} are finished", file=sys.stderr)
    return finished_results(folder, _read(folder))


def _read(folder: StudyFolder) -> StudyState:
    state = folder.read()
    assert state is not None
    return state


def _look() -> tuple[bool, str | None]:
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True)
    except ConnectionError as error:
        raise ConfigError(f"RAY_ADDRESS: there is no Ray cluster to look at: {error}") from error
    return True, None


def _watch_their_driver(folder: StudyFolder, stop: bool, watch: Watch | None) -> Result:
    with using_ray(_look):
        try:
            driver = ray.get_actor(_actor_name(folder.uri), NAMESPACE)
        except ValueError as error:
            raise ConfigError(
                f"no driver is working on the runs of {folder.uri}: continue with `raysim resume {folder.uri}`"
            ) from error
        if stop:
            driver.stop.remote()
        with shown(watch) as watch:
            return results_of(driver, _read(folder), folder.uri, watch, ours=stop)


def _actor_name(folder: str) -> str:
    return f"driver of {folder}"


def _print_where(config: Config, uri: str) -> None:
    """In a Ray job, print where runs are kept: its user can't see the folder that the command runs in."""
    if not in_ray_job():
        return
    kept = checkpoint_root(config.checkpoint, uri) if config.checkpoint.every is not None else "nowhere"
    print(f"*** On {socket.gethostname()}: MLflow store {uri}, checkpoints in {kept}", file=sys.stderr)
    if not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("RAYSIM_HOME")):
        print("*** set MLFLOW_TRACKING_URI or RAYSIM_HOME in the job's environment to change that", file=sys.stderr)


def _command(
    state: StudyState, folder: str | None, watch: Watch | None, is_new: bool, callbacks: Sequence[Callback]
) -> Result:
    resources = ResourcesConfig.model_validate(state.config["resources"])
    runs = [child for _, child in children(config_of(state.config, [], "config"))]
    code = own_code((own for run in runs for own in run.own_names), cloudpickle.dumps)
    start, kept = partial(connect, resources), current()
    if kept is not None and (told := kept.use_ray(start, logical_cpus(resources))):
        print(told, file=sys.stderr)
    with shown(watch) as watch, using_ray(start) as warning, ThreadPoolExecutor(1) as thread:
        if warning:
            print(warning, file=sys.stderr)
        request = StudyRequest(state.model_dump_json(), folder, str(home()), code, tuple(callbacks))
        actor_class: Any = Driver
        options = driver_options()
        if folder is None or kept is not None:
            # Without checkpoints one that is restarted would have nothing to continue from; in a session it would do the
            # first of its requests again.
            options |= {"max_restarts": 0, "max_task_retries": 0}
        if folder is not None and kept is None:
            options["name"] = _actor_name(folder)
        given = any(not type(item).__module__.startswith("raysim.") for item in callbacks)
        own = any(run.own_names for run in runs) or given
        key = Reusable(resources.model_dump_json(), code.path, state.tracking_uri) if not own else None

        def new() -> Any:
            return actor_class.options(**options).remote(request, kept is not None)

        try:
            with code.with_sources(), _by_value(callbacks):
                driver = kept.driver(key, request, new) if kept is not None else new()
        except ConfigError:
            raise
        except ValueError as error:  # the name is taken
            raise ConfigError(f"{folder}: these runs are under way; `raysim attach {folder}` shows them") from error
        if is_new:  # while the driver starts, which will look for it and say what is wrong with it
            thread.submit(MLflowStore, state.tracking_uri, state.experiment)
        result = results_of(driver, state, folder, watch, ours=True, keep=kept is not None)
        if kept is not None:
            kept.keep(driver, key)
        return result


_travelling = threading.Lock()


@contextmanager
def _by_value(callbacks: Sequence[Callback]) -> Iterator[None]:
    """While they travel: with their classes, since the driver reads them before it knows where a user's modules are.

    Raises:
        ConfigError: one can't travel.
    """
    names = {cls.__module__ for item in callbacks for cls in type(item).__mro__}
    found = [sys.modules[name] for name in names & sys.modules.keys()]
    modules = [
        module for module in found if module.__name__.partition(".")[0] not in ("raysim", "builtins", "__main__")
    ]
    with _travelling:  # what is registered is so for all threads
        for module in modules:
            cloudpickle.register_pickle_by_value(module)
        try:
            for item in callbacks:
                try:
                    cloudpickle.dumps(item)
                except Exception as error:  # whatever the pickling of what it holds raises
                    name = type(item).__name__
                    raise ConfigError(f"callbacks: {name} can't travel to the driver: {error}") from error
            yield
        finally:
            for module in modules:
                cloudpickle.unregister_pickle_by_value(module)


def driver_options() -> dict[str, Any]:
    """Ray's options: pinned to this node, where SQLite stores and folders are; lives on when this process ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"scheduling_strategy": here, "lifetime": "detached", "namespace": NAMESPACE}
