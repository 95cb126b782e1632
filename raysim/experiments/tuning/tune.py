"""``tune``: search the values of every entry of a study under equal budgets, write ``tuned.yaml``, run it on fresh seeds."""

from __future__ import annotations

import hashlib
import html
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from raysim.analysis.tuning import Setting, budgets, ranking, ranking_caption, report_files, shown_values
from raysim.config.fingerprint import algorithm_digest
from raysim.config.loading import children, dump
from raysim.config.locations import resolve_uri
from raysim.config.schema import Config
from raysim.config.sections.tuning import TuneConfig
from raysim.data.loading import load_data
from raysim.errors import ConfigError
from raysim.experiments.command import find_folder, run
from raysim.experiments.finished import finished_results
from raysim.experiments.launch import most_batches_of
from raysim.experiments.preparation import prepare_run
from raysim.experiments.results import Result
from raysim.experiments.session import current, session
from raysim.experiments.tuning.mlflow_runs import ParentRuns
from raysim.experiments.tuning.plans import Plan, plans_of
from raysim.experiments.tuning.search import REASON, Search
from raysim.experiments.tuning.storage import only_here, storage_file
from raysim.experiments.tuning.trials import Trials
from raysim.experiments.tuning.tuned_study import HEADER, Best, budget_in_words, text_of, trial_table, tuned_study
from raysim.experiments.watch_driver import RunFailed, Watch
from raysim.own_code import is_own
from raysim.tracking.mlflow_store import MLflowStore, check_address
from raysim.tracking.tags import TUNED_TAG
from raysim.workers.auto_resources import resolve_resources
from raysim.workers.cluster import connect, logical_cpus


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
    best: Best
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
        return _ranked(self.final, self.budget)

    def _repr_html_(self) -> str:
        """The ranking and what was used for it, for notebooks."""
        parts = [(self.budgets, f"Every entry got {self.budget}.")]
        parts += [self.ranking] if self.ranking is not None else []
        return "\n".join(f"<p><b>{html.escape(about)}</b></p>\n{table.to_html(index=False)}" for table, about in parts)

    @property
    def _tune(self) -> TuneConfig:
        assert self.asked.tune is not None
        return self.asked.tune


def _ranked(final: Result | None, budget: str) -> tuple[pd.DataFrame, str] | None:
    table = ranking(final.history, final.view.model) if final is not None else None
    return None if final is None or table is None else (table, ranking_caption(final.history, final.view, budget))


def tune(
    config: Config,
    output: str | Path = "tuned.yaml",
    final: bool = True,
    watch: Watch | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tuning:
    """Tune every entry of a study, as its ``tune:`` block says, and run the study of the values that were found.

    What was interrupted goes on with the same configuration, and has the trials that it would have had: they are kept in
    ``optuna.db`` beside the MLflow store.

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
    plans, asked = plans_of(config), config.tune
    assert asked is not None
    _check_output(output)
    uri = resolve_uri(config.tracking)
    check_address(uri)
    file, experiment = storage_file(uri), config.tracking.experiment or config.name
    tuning_experiment = f"{experiment} · tuning"
    with only_here(file) as storage, nullcontext() if current() is not None else session():
        store = MLflowStore(uri, tuning_experiment)
        parents = ParentRuns(store, config)
        searches: dict[tuple[str, Setting], Search] = {}
        failed: list[str] = []
        full_updates = len(asked.seeds) * config.rounds * config.cohort_size
        _start_ray(config, say)
        for plan in plans:
            search = searches[plan.entry, plan.setting] = Search(
                plan.name, plan.config, plan.space, storage, full_updates
            )
            parent = parents.of(search, plan)
            where = (store, tuning_experiment, parent)
            _search(plan, search, Trials(search, plan.config, config.name, *where, watch, say), say)
            store.end(parent, "FINISHED")
            if search.best is None:
                failed.append(_why_nothing(plan, search))
        if failed:
            raise RunFailed(
                "\n".join([*failed, "without such entries the same file goes on: trials of the others are kept"])
            )
        tuned, best = tuned_study(config, plans, searches)
        trials = trial_table(searches)
        text = text_of(tuned, trials, asked)
        _write(output, text)
        say(f"{output}: the best values of each entry")
        result = _final(tuned, list(searches.values())[-1], uri, watch, say) if final else None
        importances = {
            plan.entry: searches[plan.entry, plan.setting].importances() for plan in plans if plan.setting == "tuned"
        }
        files = report_files(
            trials,
            importances,
            asked.metric,
            asked.direction,
            budget_in_words(asked),
            _ranked(result, budget_in_words(asked)),
        )
        files["tuned.yaml"] = text.encode()
        parents.finish(files)
        if result is not None and result.parent_run_id is not None:
            of_final = MLflowStore(uri, experiment)
            of_final.set_tags(result.parent_run_id, {TUNED_TAG: budget_in_words(asked)})
            of_final.log_files(result.parent_run_id, files, "tuning")
    return Tuning(budget_in_words(asked), trials, best, config, tuned, output, result, tuning_experiment)


def _write(output: Path, text: str) -> None:
    """Whole or not at all."""
    part = output.with_name(f"{output.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(output)


def _check_output(output: Path) -> None:
    if output.exists() and not output.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        raise ConfigError(f"{output}: is a file of yours, which would be replaced; give another --output")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"{output}: there is no folder {output.absolute().parent}")


def _search(plan: Plan, search: Search, trials: Trials, say: Callable[[str], None]) -> None:
    """All trials that are left of a search."""
    at_a_time = _at_a_time(plan.config, search.tune.trials)
    while asked := search.ask(at_a_time):
        outcomes = trials.run(asked)
        for trial in asked:
            search.tell(trial, outcomes[trial.number])
            about = f"{plan.entry}, {plan.setting}: trial {trial.number + 1} of {search.tune.trials}"
            say(f"{about}: {shown_values(trial.values)}: {outcomes[trial.number]}")
        trials.forget()


def _start_ray(config: Config, say: Callable[[str], None]) -> None:
    """Now, so that it is known from the first trial on how many have room, and no trial pays for it."""
    kept = current()
    assert kept is not None
    if (told := kept.use_ray(partial(connect, config.resources), logical_cpus(config.resources))) is not None:
        say(told)


def _at_a_time(config: Config, trials: int) -> int:
    """How many trials run at a time: as many as the runs of a study would."""
    asked = config.resources.concurrent_runs
    if asked != "auto":
        return asked
    if is_own(config.data.name):  # whose function may take long
        return 1
    run = prepare_run("", config, *load_data(config, pixels=False))
    found = resolve_resources(config.resources, most_batches_of(run.config), runs=trials).resources.concurrent_runs
    assert found != "auto"
    return found


def _why_nothing(plan: Plan, search: Search) -> str:
    reasons = [trial.user_attrs[REASON] for trial in search.trials if REASON in trial.user_attrs]
    why = f"the first failed because: {reasons[0]}" if reasons else "all were pruned"
    return f"{plan.entry}, {plan.setting}: none of {len(search.trials)} trials gave a value; {why}"


def _final(tuned: Config, search: Search, uri: str, watch: Watch | None, say: Callable[[str], None]) -> Result:
    """Run the study of the values that were found, or read its results if that was done before."""
    what = [dump(tuned), *(algorithm_digest(child) for _, child in children(tuned))]
    key = f"final {hashlib.sha256(' '.join(what).encode()).hexdigest()[:12]}"
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
