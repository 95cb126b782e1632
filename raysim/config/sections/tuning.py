"""The keys under ``tune:``, which ``raysim tune`` reads and every other command leaves alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from raysim.config.sections.section import Auto, Positive, Section
from raysim.search_space import Range


def _scalars(values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError("has no values to choose from")
    if wrong := next((value for value in values if not isinstance(value, bool | int | float | str)), None):
        raise ValueError(f"{wrong!r} is no number, text, true or false")
    if len({(type(value), value) for value in values}) < len(values):
        raise ValueError("has a value twice")
    return values


class TuneConfig(Section):
    """How the hyperparameters of every entry of the study are found: each gets the same budget, and no test sample counts."""

    trials: Positive = 24
    """Of each entry. Of budget ``updates``: as many client updates as so many trials with the file's own ``rounds`` and
    ``cohort`` that are not pruned."""
    seeds: list[int] = Field([100, 101], min_length=1)
    """A trial is a run of each, and its value their mean; never those of the study."""
    metric: str = "validation/accuracy_mean"
    """Of the last evaluated round: ``validation/...`` or ``train/...``, since whatever is about test samples is refused."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Whether more of the metric is better, or less."""
    sampler: Literal["tpe", "quasi-random", "grid"] = "tpe"
    """Optuna's: a tree-structured Parzen estimator; a scrambled Sobol sequence; or the
    combinations of a space of lists, in random order, at most ``trials`` of them."""
    pruner: Literal["hyperband", "median", "none"] = "hyperband"
    """Optuna's, which ends trials early that do worse than others did after as many rounds, judged by the first seed."""
    budget: Literal["trials", "updates", "seconds"] = "trials"
    """What is equal for every entry: the number of trials; of client updates (a client's local training in one round); or of
    seconds, which depends on the machine."""
    seconds: float | None = Field(None, gt=0)
    """Budget ``seconds``: no trial of an entry begins after so many."""
    space: Auto | dict[str, Range | Annotated[list[Any], AfterValidator(_scalars)]] = "auto"
    """By dotted key: ``{low: 0.001, high: 1.0, log: true}``, or a list of values. auto: ``train.optimizer.lr`` and the
    ranges that the entry's method declares. An entry of the study may have a ``tune: {space: ...}`` of its own, whose keys
    are added."""
    lr_only: bool = True
    """Tune ``train.optimizer.lr`` alone, too, with the same budget, for a ranking by that."""

    @model_validator(mode="after")
    def _keys_fit(self) -> TuneConfig:
        if not self.metric.startswith(("validation/", "train/")):
            raise ValueError(
                f"metric is {self.metric!r}, which is about test samples, or no metric of a run: choose one of "
                "validation/... or train/..."
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds has one twice: {self.seeds}")
        if (self.budget == "seconds") != (self.seconds is not None):
            raise ValueError("'seconds' is the budget 'seconds': give both or none")
        if isinstance(self.space, dict) and not self.space:
            raise ValueError("space is empty: give keys with ranges, or 'auto'")
        return self
