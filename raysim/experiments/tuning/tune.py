"""``tune``: search the values of every entry of a study under equal budgets, write ``tuned.yaml``, run it on fresh seeds."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from raysim.analysis.tuning import Setting, budgets, entry_name, ranking, ranking_caption, report_files
from raysim.config.dotted import flatten
from raysim.config.loading import children, config_of, dump
from raysim.config.locations import resolve_uri
from raysim.config.schema import Config
from raysim.config.sections.tuning import TuneConfig
from raysim.errors import ConfigError
from raysim.experiments.command import find_folder, run
from raysim.experiments.finished import finished_results
from raysim.experiments.preparation import check
from raysim.experiments.results import Result
from raysim.experiments.session import current, session
from raysim.experiments.tuning.search import REASON, Search, as_row
from raysim.experiments.tuning.space import LR, Space, space_of
from raysim.experiments.tuning.storage import only_here, storage_file
from raysim.experiments.tuning.trials import Trials
from raysim.experiments.watch_driver import RunFailed, Watch
from raysim.tracking.mlflow_store import MLflowStore, check_address
from raysim.tracking.tags import DESCRIPTION_TAG, ENTRY_TAG

HEADER = "# Written by `raysim tune`"
KIND_TAG = "raysim.kind"
PARENT, WHOLE = "parent", "whole"
"""What is kept of a search: the ids in MLflow of the run that its trials belong to, and of the whole tuning."""


@dataclass(frozen=True)
class Tuning:
    """What a tuning has found.

    Attributes:
        budget: what every entry got, in words.
        trials: a row per trial: ``entry``, ``setting`` (tuned, or lr only), ``trial``, ``state``, ``value`` of the metric,
            the ``values`` of its keys as JSON, client ``updates``, ``seconds``, MLflow ``runs``, the ``reason`` of a failure.
        best: the values by entry and setting.
        asked: the configuration with its ``tune:`` block.
        config: the study of ``tuned.yaml``, in the file ``path``.
        final: the result of that study; None without it.
        experiment: of MLflow, where the trials are.
    """

    budget: str
    trials: pd.DataFrame
    best: dict[tuple[str, Setting], dict[str, Any]]
    asked: Config
    config: Config
    path: Path
    final: Result | None
    experiment: str

    @property
    def budgets(self) -> pd.DataFrame:
        """A row per search: what it used, how its trials ended, its best value and values."""
        return budgets(self.trials, self._tune.metric, self._tune.direction)

    @property
    def ranking(self) -> tuple[pd.DataFrame, str] | None:
        """A row per method, under the default, lr-only and tuned settings, of the final study; and what the numbers are."""
        return _ranked(self.final)

    @property
    def _tune(self) -> TuneConfig:
        assert self.asked.tune is not None
        return self.asked.tune


def _ranked(final: Result | None) -> tuple[pd.DataFrame, str] | None:
    table = ranking(final.history, final.view.model) if final is not None else None
    return None if final is None or table is None else (table, ranking_caption(final.history, final.view))


@dataclass(frozen=True)
class _Plan:
    """One search: an entry, and whether all of its keys are tuned, or the learning rate alone."""

    entry: str
    setting: Setting
    config: Config
    space: Space
    name: str


def tune(
    config: Config,
    output: str | Path = "tuned.yaml",
    final: bool = True,
    watch: Watch | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tuning:
    """Tune every entry of a study, as its ``tune:`` block says, and run the study of the values that were found.

    What was interrupted goes on with the same configuration: finished trials are kept in ``optuna.db`` beside the MLflow
    store. Trials run one after another have the same values then as without the interruption.

    Args:
        output: where the study with the best values is written.
        final: run that study.
        watch: as for ``raysim.run``.
        notify: gets a line about every trial; default: print to standard error.

    Raises:
        ConfigError: something is wrong with the configuration, the space, the store, or the data.
        RunFailed: every trial of an entry failed, or a run of the final study.
        RunKilled: ``KeyboardInterrupt`` came.
    """
    say = notify or (lambda line: print(line, file=sys.stderr))
    output = Path(output)
    plans = _plans(config)
    _check_output(output)
    uri = resolve_uri(config.tracking)
    check_address(uri)
    file, experiment = storage_file(uri), config.tracking.experiment or config.name
    tuning_experiment = f"{experiment} · tuning"
    with only_here(file) as storage, nullcontext() if current() is not None else session():
        store = MLflowStore(uri, tuning_experiment)
        parents = _Parents(store, config)
        searches: dict[tuple[str, Setting], Search] = {}
        for plan in plans:
            search = searches[plan.entry, plan.setting] = Search(plan.name, plan.config, plan.space, storage)
            _search(
                plan, search, config.name, store, tuning_experiment, str(file), parents.of(search, plan), watch, say
            )
        tuned, best = _tuned(config, plans, searches)
        trials, asked = _table(searches), config.tune
        assert asked is not None
        text = _text(tuned, trials, asked)
        output.write_text(text, encoding="utf-8")
        say(f"{output}: the best values of each entry")
        result = _final(tuned, list(searches.values())[-1], uri, watch, say) if final else None
        importances = {
            plan.entry: searches[plan.entry, plan.setting].importances() for plan in plans if plan.setting == "tuned"
        }
        files = report_files(trials, importances, asked.metric, asked.direction, _budget(asked), _ranked(result))
        files["tuned.yaml"] = text.encode()
        parents.finish(files)
        if result is not None and result.parent_run_id is not None:
            MLflowStore(uri, experiment).log_files(result.parent_run_id, files, "tuning")
    return Tuning(_budget(asked), trials, best, config, tuned, output, result, tuning_experiment)


def _text(tuned: Config, trials: pd.DataFrame, tune: TuneConfig) -> str:
    """``tuned.yaml``: what was found, as a comment, and the study."""
    found = [
        f"#   {row['entry']}: {row[tune.metric]} in trial {row['found in trial']} of {row['trials']}: {row['best values']}"
        for row in budgets(trials, tune.metric, tune.direction).to_dict("records")
    ]
    about = f"{HEADER}: the best {tune.metric} of each entry, with {_budget(tune)}."
    return "\n".join([about, *found, dump(tuned)])


def _budget(tune: TuneConfig) -> str:
    seeds = f"of {len(tune.seeds)} {'seed' if len(tune.seeds) == 1 else 'seeds'} each"
    if tune.budget == "updates":
        return f"as many client updates as {tune.trials} trials {seeds} that are not pruned"
    if tune.budget == "seconds":
        return f"{tune.seconds:g} seconds, after which no trial began"
    return f"{tune.trials} trials {seeds}"


def _plans(config: Config) -> list[_Plan]:
    """The searches of a configuration, all of it checked.

    Raises:
        ConfigError: see its message.
    """
    if config.tune is None:
        raise ConfigError(
            "tune: there is no such block in the file; it says how many trials, of which seeds, in what space"
        )
    entries: dict[str, Config] = {}
    seeds: set[int] = set()
    for entry, child in children(config):
        entries.setdefault(entry, child)
        seeds.add(child.seed)
    if both := sorted(seeds & set(config.tune.seeds)):
        raise ConfigError(
            f"tune.seeds: {both[0]} is a seed of the study, and nothing that is reported may have been tuned on; take others"
        )
    if any(name.startswith("__main__:") for child in entries.values() for _, name in child.own_names):
        raise ConfigError(
            "tune: what is defined in a script or a notebook can't be tuned, since it could not go on; put it into a module"
        )
    plans: list[_Plan] = []
    problems: list[str] = []
    for entry, child in entries.items():
        try:
            plans += _of_entry(entry, child, config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return plans


def _of_entry(entry: str, child: Config, config: Config) -> list[_Plan]:
    assert child.tune is not None
    assert config.tune is not None
    if child.tune.model_copy(update={"space": "auto"}) != config.tune.model_copy(update={"space": "auto"}):
        raise ConfigError(
            f"study entry {entry!r}: of tune, an entry may change the space only: every entry has the same budget"
        )
    plain = child.model_copy(update={"name": entry, "seed": config.tune.seeds[0]})
    check(plain.model_copy(update={"tune": None}))
    if (
        child.tune.metric.startswith("validation/")
        and not child.data.validation_fraction
        and child.data.partition.name != "file"
    ):
        raise ConfigError(
            f"tune.metric: {child.tune.metric} needs validation samples: set data.validation_fraction, such as 0.2"
        )
    space = space_of(entry, plain)
    alone = {LR: space[LR]} if config.tune.lr_only and LR in space else {}
    if not alone or alone == space:
        return [_plan(entry, "tuned", plain, space)]
    return [_plan(entry, "lr only", plain, alone), _plan(entry, "tuned", plain, space)]


def _plan(entry: str, setting: Setting, config: Config, space: Space) -> _Plan:
    """Its name has a digest of all that the trials depend on: after a change another search begins."""
    free = {"name", "tracking", "checkpoint", "resources", "callbacks", "study"}
    what = [config.model_dump(mode="json", exclude=free), {key: repr(given) for key, given in space.items()}]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
    return _Plan(entry, setting, config, space, f"{entry}, {setting}, {digest}")


def _check_output(output: Path) -> None:
    if output.exists() and not output.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        raise ConfigError(f"{output}: is a file of yours, which would be replaced; give another --output")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: there is no folder {output.absolute().parent}")


def _search(
    plan: _Plan,
    search: Search,
    base: str,
    store: MLflowStore,
    experiment: str,
    storage: str,
    parent: str,
    watch: Watch | None,
    say: Callable[[str], None],
) -> None:
    """All trials that are left of a search.

    Raises:
        RunFailed: not one of them gave a value.
    """
    trials = Trials(search, plan.config, base, store, experiment, storage, parent, watch, say)
    at_a_time = plan.config.resources.concurrent_runs
    while asked := search.ask(1 if at_a_time == "auto" else at_a_time):
        for number, outcome in trials.run(asked).items():
            trial = next(one for one in asked if one.number == number)
            search.tell(trial, outcome)
            shown = ", ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in trial.values.items()
            )
            became = (
                "pruned"
                if outcome.pruned
                else f"failed: {outcome.reason}"
                if outcome.value is None
                else f"{outcome.value:.4f}"
            )
            say(f"{plan.entry}, {plan.setting}: trial {number + 1} of {search.tune.trials}: {shown}: {became}")
    trials.forget()
    store.end(parent, "FINISHED")
    if search.best is None:
        reasons = [trial.user_attrs[REASON] for trial in search.trials if REASON in trial.user_attrs]
        raise RunFailed(
            f"{plan.entry}, {plan.setting}: none of {len(search.trials)} trials gave a value; the first failed because: "
            f"{reasons[0] if reasons else 'it was pruned'}"
        )


def _tuned(
    config: Config, plans: list[_Plan], searches: Mapping[tuple[str, Setting], Search]
) -> tuple[Config, dict[tuple[str, Setting], dict[str, Any]]]:
    """The study of the values that were found: each entry as it was, with the best learning rate, with the best values."""
    best: dict[tuple[str, Setting], dict[str, Any]] = {}
    for (entry, of), search in searches.items():
        found = search.best
        assert found is not None
        best[entry, of] = dict(found.params)
    raw = config.model_dump(mode="json", exclude={"tune", "study"})
    study: list[dict[str, Any]] = []
    for given in config.study or [{"name": config.name, "seeds": [config.seed]}]:
        own = {key: value for key, value in given.items() if key not in ("name", "tune")}
        name = given["name"]
        study.append({"name": entry_name(name, "default"), **own})
        if (name, "lr only") in best:
            study.append({"name": entry_name(name, "lr only"), **_with(own, best[name, "lr only"], config)})
        values = best[name, "tuned"]
        setting: Setting = "tuned, lr only" if values.keys() == {LR} else "tuned"
        study.append({"name": entry_name(name, setting), **_with(own, values, config)})
    return config_of({**raw, "study": study}, [], "tuned.yaml"), best


def _with(entry: Mapping[str, Any], values: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """An entry of the study with values of dotted keys; its ``algorithm`` block is whole, since it replaces the file's."""
    changed = json.loads(json.dumps(dict(entry)))
    if any(key.startswith("algorithm.") for key in values) and "algorithm" not in changed:
        changed["algorithm"] = config.algorithm.model_dump(mode="json")
    for key, value in values.items():
        *path, last = key.split(".")
        block = changed
        for name in path:
            block = block.setdefault(name, {})
        block[last] = value
    return changed


def _final(tuned: Config, search: Search, uri: str, watch: Watch | None, say: Callable[[str], None]) -> Result:
    """Run the study of the values that were found, or read its results if that was done before."""
    key = f"final {hashlib.sha256(dump(tuned).encode()).hexdigest()[:12]}"
    if (parent := search.kept(key)) is not None:
        try:
            folder = find_folder(parent, uri)
            state = folder.read()
            assert state is not None
            say(f"the study of the tuned values was finished before: {parent}")
            return finished_results(folder, state)
        except ConfigError as error:
            say(f"the study of the tuned values was finished before, and runs again: {error}")
    result = run(tuned, watch)
    assert result.parent_run_id is not None
    search.keep(key, result.parent_run_id)
    return result


def _table(searches: Mapping[tuple[str, Setting], Search]) -> pd.DataFrame:
    rows = [
        {"entry": entry, "setting": setting, **as_row(trial)}
        for (entry, setting), search in searches.items()
        for trial in search.trials
    ]
    return pd.DataFrame(rows)


class _Parents:
    """The runs in MLflow that trials belong to: one for the tuning, and one for each search below it."""

    def __init__(self, store: MLflowStore, config: Config) -> None:
        self._store, self._config, self._whole = store, config, ""

    def of(self, search: Search, plan: _Plan) -> str:
        """The id of the run of a search: made, or opened again."""
        self._whole = self._whole or search.kept(WHOLE) or self._start()
        parent = search.kept(PARENT)
        if parent is None:
            tags = {KIND_TAG: "search", ENTRY_TAG: plan.entry}
            space = {key: str(given) for key, given in plan.space.items()}
            name = f"tune · {plan.entry}" + (", lr only" if plan.setting == "lr only" else "")
            parent = self._store.start(name, space, tags, self._whole)
            search.keep(PARENT, parent)
            search.keep(WHOLE, self._whole)
        self._store.reopen(parent)
        return parent

    def _start(self) -> str:
        assert self._config.tune is not None
        parameters = dict(flatten(self._config.tune.model_dump(mode="json"), "tune."))
        whole = self._store.start(f"tuning · {self._config.name}", parameters, {KIND_TAG: "tuning"})
        self._store.log_text(whole, dump(self._config), "config.yaml")
        return whole

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Log the report, and close the tuning's own run."""
        self._store.log_files(self._whole, files)
        self._store.set_tags(self._whole, {DESCRIPTION_TAG: files["tuning.md"].decode()})
        self._store.end(self._whole, "FINISHED")
