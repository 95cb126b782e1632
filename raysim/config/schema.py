"""The schema of a YAML file: ``Config``, of the blocks in ``sections/``. Loading is in ``loading.py``.

Every key is checked; none is ignored. ``auto`` values are resolved once, before round 0, and written into the run's
``config.yaml``, which ``raysim run`` accepts again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from raysim.algorithms import FederatedAlgorithm, algorithm_class, algorithm_name
from raysim.config.dotted import flatten
from raysim.config.grid import expand
from raysim.config.sections.data import DataConfig
from raysim.config.sections.evaluation import CohortConfig, EvaluateConfig
from raysim.config.sections.running import (
    CallbackConfig,
    CheckpointConfig,
    ResourcesConfig,
    TrackingConfig,
    with_options,
)
from raysim.config.sections.section import Positive, Section
from raysim.config.sections.training import ModelConfig, TrainConfig
from raysim.config.sections.tuning import TuneConfig
from raysim.own_code import is_own, is_own_model


def _algorithm(value: Any) -> Any:
    """From a mapping to the algorithm that its ``name`` asks for; errors are reported under ``algorithm.``.

    A method that was made in Python gets its name.
    """
    if isinstance(value, FederatedAlgorithm):
        return value.model_copy(update={"name": algorithm_name(type(value))})
    if not isinstance(value, Mapping):
        return value
    cls = algorithm_class(value)
    try:
        return cls.model_validate(dict(value))
    except ValidationError as error:
        raise AlgorithmBlockError(cls, error) from error


def _dumped(value: Any) -> Any:
    """The entries of a study with the methods that were made in Python as mappings."""
    if isinstance(value, FederatedAlgorithm):
        return _algorithm(value).model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _dumped(inner) for key, inner in value.items()}
    return [_dumped(inner) for inner in value] if isinstance(value, list) else value


class AlgorithmBlockError(ValueError):
    """Carries the validation error of the algorithm's own class to the loader."""

    def __init__(self, cls: type[FederatedAlgorithm], error: ValidationError) -> None:
        super().__init__(str(error))
        self.cls, self.error = cls, error


class Config(Section):
    """A run, or a study of several."""

    name: str = Field("raysim", min_length=1)
    """Name of the run or study; the MLflow experiment unless ``tracking.experiment`` is given."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Every random draw follows from it."""
    rounds: Positive = 20
    """Federated rounds."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    algorithm: Annotated[SerializeAsAny[FederatedAlgorithm], BeforeValidator(_algorithm)]
    """``name``, and that algorithm's own keys."""
    train: TrainConfig = TrainConfig()
    cohort: CohortConfig = CohortConfig(fraction=1.0)
    evaluate: EvaluateConfig = EvaluateConfig()
    resources: ResourcesConfig = ResourcesConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    callbacks: list[Annotated[CallbackConfig, BeforeValidator(with_options)]] = []
    """What is told of rounds, checkpoints and the end of a run: names, or ``name`` with ``options`` each. It may end a run
    early; no other result depends on it."""
    tune: TuneConfig | None = None
    """How ``raysim tune`` finds hyperparameters; other commands leave it alone. null: not."""
    study: list[dict[str, Any]] | None = None
    """Several runs of this file, compared: each entry has a ``name``, maybe ``seeds``, and the keys that it changes. Its
    ``algorithm:`` block replaces the file's whole block. Or ``grid``, lists of values by dotted keys (``seed`` among them),
    of which every combination is a run; with ``exclude``, combinations that are left out, and ``include``, more of them."""

    @model_validator(mode="before")
    @classmethod
    def _grid_to_entries(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("study") is not None:
            raw = {**raw, "study": _dumped(raw["study"])}
        if isinstance(raw, Mapping) and isinstance(raw.get("study"), Mapping):
            try:
                return {**raw, "study": expand(raw["study"], raw.get("algorithm"))}
            except ValueError as error:
                raise ValueError(f"study: {error}") from error
        return raw

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        clients, cohort = self.data.num_clients, self.cohort
        if self.algorithm.pooled and (cohort.dropout or cohort.stragglers):
            raise ValueError(
                f"cohort: dropout and stragglers are not used by {self.algorithm.name!r}, which has no clients"
            )
        optimizer, allowed = self.train.optimizer.name, self.algorithm.local_optimizers
        if optimizer not in allowed and not (is_own(optimizer) and "adamw" in allowed):
            raise ValueError(
                f"train.optimizer.name: {self.algorithm.name!r} needs {' or '.join(allowed)}, not {optimizer}: it computes "
                "with the sum of a client's gradients, which it gets from how far the client went"
            )
        if self.resources.compile and self.algorithm.has_own("losses"):
            raise ValueError(
                f"resources.compile: only cross entropy is compiled; {self.algorithm.name!r} has a loss of its own"
            )
        if self.train.warmup_rounds >= self.rounds:
            raise ValueError(f"train.warmup_rounds is {self.train.warmup_rounds}, but rounds is {self.rounds}")
        if cohort.size is not None and cohort.size > clients:
            raise ValueError(f"cohort.size is {cohort.size}, but data.num_clients is {clients}")
        if cohort.schedule is not None:
            if len(cohort.schedule) < self.rounds:
                raise ValueError(f"cohort.schedule has {len(cohort.schedule)} rounds, but rounds is {self.rounds}")
            if (largest := max(max(ids) for ids in cohort.schedule)) >= clients:
                raise ValueError(f"cohort.schedule has client {largest}, but ids go from 0 to {clients - 1}")
        if isinstance(self.evaluate.clients, int) and self.evaluate.clients > clients:
            raise ValueError(f"evaluate.clients is {self.evaluate.clients}, but data.num_clients is {clients}")
        return self

    @property
    def cohort_size(self) -> int:
        """The largest cohort of a round."""
        if self.cohort.schedule is not None:
            return max(len(ids) for ids in self.cohort.schedule)
        if self.cohort.size is not None:
            return self.cohort.size
        assert self.cohort.fraction is not None
        return max(1, round(self.cohort.fraction * self.data.num_clients))

    @property
    def own_names(self) -> list[tuple[str, str]]:
        """What is a user's own: dotted key and ``module:name`` of each."""
        named = [
            ("algorithm.name", self.algorithm.name),
            ("algorithm.plugin", self.algorithm.plugin or ""),
            ("data.name", self.data.name),
            ("data.partition.name", self.data.partition.name),
            ("data.augment", self.data.augment),
            ("model.name", self.model.name),
            ("train.optimizer.name", self.train.optimizer.name),
            ("cohort.sampling", self.cohort.sampling),
            *(("evaluate.metrics", name) for name in self.evaluate.metrics),
            *(("callbacks", callback.name) for callback in self.callbacks),
        ]
        return [(key, name) for key, name in named if (is_own_model if key == "model.name" else is_own)(name)]

    def flat(self) -> dict[str, Any]:
        """Dotted path to value, without the study: what MLflow shows as parameters."""
        return dict(flatten(self.model_dump(mode="json", exclude={"study", "tune"})))
