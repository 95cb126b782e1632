"""The study of the values that were found, as a configuration and as the text of ``tuned.yaml``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from raysim.analysis.tuning import Setting, budgets, entry_name
from raysim.config.loading import config_of, dump
from raysim.config.schema import Config
from raysim.config.sections.tuning import TuneConfig
from raysim.experiments.tuning.search import Search, as_row
from raysim.experiments.tuning.space import LR

HEADER = "# Written by `raysim tune`"
Searches = Mapping[tuple[str, Setting], Search]
Best = dict[tuple[str, Setting], dict[str, Any]]


def tuned_study(config: Config, searches: Searches) -> tuple[Config, Best]:
    """The study of the values that were found: each entry as it was, with the best learning rate, with the best values."""
    best: Best = {}
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


def trial_table(searches: Searches) -> pd.DataFrame:
    rows = [
        {"entry": entry, "setting": setting, **as_row(trial)}
        for (entry, setting), search in searches.items()
        for trial in search.trials
    ]
    return pd.DataFrame(rows)


def text_of(tuned: Config, trials: pd.DataFrame, tune: TuneConfig) -> str:
    """``tuned.yaml``: what was found, as a comment, and the study."""
    found = [
        f"#   {row['entry']}: {row[tune.metric]} in trial {row['found in trial']} of {row['trials']}: {row['best values']}"
        for row in budgets(trials, tune.metric, tune.direction).to_dict("records")
    ]
    about = f"{HEADER}: the best {tune.metric} of each entry, with {budget_in_words(tune)}."
    return "\n".join([about, *found, dump(tuned)])


def budget_in_words(tune: TuneConfig) -> str:
    seeds = f"of {len(tune.seeds)} {'seed' if len(tune.seeds) == 1 else 'seeds'} each"
    if tune.budget == "updates":
        return f"as many client updates as {tune.trials} trials {seeds} that are not pruned"
    if tune.budget == "seconds":
        return f"{tune.seconds:g} seconds, after which no trial began"
    return f"{tune.trials} trials {seeds}"
