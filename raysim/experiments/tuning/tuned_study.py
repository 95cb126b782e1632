"""The study of the values that were found, as a configuration and as the text of ``tuned.yaml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raysim.analysis.tuning import Setting, budgets, entry_name, of_name
from raysim.config.loading import children, config_of, dump
from raysim.config.schema import Config
from raysim.config.sections.tuning import TuneConfig
from raysim.experiments.tuning.plans import Plan
from raysim.experiments.tuning.search import Search, as_row
from raysim.experiments.tuning.space import LR, changes, with_values

HEADER = "# Written by `raysim tune`"
Searches = Mapping[tuple[str, Setting], Search]
Best = dict[tuple[str, Setting], dict[str, Any]]


def tuned_study(config: Config, plans: Sequence[Plan], searches: Searches) -> tuple[Config, Best]:
    """The study of the values that were found: each entry as it was, with the best learning rate, with the best values."""
    best: Best = {}
    for (entry, of), search in searches.items():
        found = search.best
        assert found is not None
        best[entry, of] = dict(found.params)
    raw = config.model_dump(mode="json", exclude={"tune", "study"})
    children_of = {plan.entry: plan.config for plan in plans}
    study: list[dict[str, Any]] = []
    for given in config.study or [{"name": config.name, "seeds": [config.seed]}]:
        own, name = {key: value for key, value in given.items() if key not in ("name", "tune")}, given["name"]
        study.append({"name": entry_name(name, "default"), **own})
        if (name, "lr only") in best:
            values = changes(children_of[name], best[name, "lr only"], name)
            study.append({"name": entry_name(name, "lr only"), **own, **values})
        setting: Setting = "tuned, lr only" if best[name, "tuned"].keys() == {LR} else "tuned"
        values = changes(children_of[name], best[name, "tuned"], name)
        study.append({"name": entry_name(name, setting), **own, **values})
    tuned = config_of({**raw, "study": study}, [], "tuned.yaml")
    _check_nothing_else_changed(tuned, children_of, best)
    return tuned, best


def _check_nothing_else_changed(tuned: Config, before: Mapping[str, Config], best: Best) -> None:
    kept = {"name", "seed", "tune", "study"}
    for name, child in children(tuned):
        found = of_name(name)
        assert found is not None
        entry, settings = found
        values = {} if settings == ["default"] else best[entry, "lr only" if settings == ["lr only"] else "tuned"]
        expected = with_values(before[entry], values, name).model_dump(exclude=kept)
        assert child.model_dump(exclude=kept) == expected, f"tuned.yaml: {name} is not {entry} with {values}"


def trial_table(searches: Searches) -> pd.DataFrame:
    """A row per trial of all searches; for its columns see ``Tuning.trials``."""
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
    """What every search has got."""
    seeds = f"of {len(tune.seeds)} {'seed' if len(tune.seeds) == 1 else 'seeds'} each"
    if tune.budget == "updates":
        return f"as many client updates as {tune.trials} trials {seeds} that are not pruned would have"
    if tune.budget == "seconds":
        return f"{tune.seconds:g} seconds, after which no trial began"
    if tune.sampler == "grid":
        return f"every combination of its lists, at most {tune.trials} trials {seeds}"
    return f"{tune.trials} trials {seeds}"
