"""What a worker may be asked to do with a client batch: a type for each kind of task, and what comes back.

A task knows how it is computed. ``Train`` is the only one with an effect: its worker stores the clients' new states and keeps
their sums (``workers/client_actor.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from raysim.functional.optimizers import Tensors
from raysim.training.aggregation import Weights
from raysim.training.engine import ClientEngine, Trained
from raysim.training.evaluation import Evaluation
from raysim.training.local_training import LocalTraining

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Rows = NDArray[np.float32]
BEFORE = -1
"""The round of what comes before the first."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A client batch and what to do with it.

    Attributes:
        round: the round beside whose training it runs; evaluations are for the metrics of the round before, too.
        index: position among the tasks of that round.
        clients: (K,) ids.
        read: (K,) addresses of the clients' states.
        samples: how many go through the model, padding included; the task's duration is estimated from it.
        messages: rows (K, m) of ``FederatedAlgorithm.server_messages``; set when a worker gets the task.
    """

    kind: ClassVar[str]
    """The name of this kind of task in messages and in ``timeline.csv``."""
    passes: ClassVar[float]
    """The cost per sample in forward passes, used until a task of this kind has been measured."""
    reads_states: ClassVar[bool] = True
    """Whether the clients' states, and messages to them, are needed; if not, ``compute`` gets rows without entries."""

    round: int
    index: int
    clients: Ints
    read: Ints
    samples: int = 1
    messages: dict[str, Rows] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the task among those of several rounds."""
        return self.round, self.index

    @abstractmethod
    def compute(self, engine: ClientEngine, broadcast: Tensors, states: Rows) -> Trained | Evaluation:
        """Do the task for clients with states (K, size), without side effects."""

    def of_one(self, i: int) -> Task:
        """The same for the ``i``-th client alone."""
        one = slice(i, i + 1)
        messages = {name: rows[one] for name, rows in self.messages.items()}
        return replace(self, clients=self.clients[one], read=self.read[one], messages=messages)

    def _messages(self, engine: ClientEngine) -> Tensors:
        return {name: torch.from_numpy(rows).to(engine.device) for name, rows in self.messages.items()}


@dataclass(frozen=True, kw_only=True)
class Train(Task):
    """Train clients that take part in the round.

    Attributes:
        weights: of the clients (K,), by weighting; 0 for those that do not report.
        reports: (K,) who reports to the server (``cohort.dropout``).
        work_share: (K,) the share of its local steps that each client does (``cohort.stragglers``); None is all of them.
        pooled: samples to train on in place of the client's own (``FederatedAlgorithm.pooled``); K is 1.
        evaluate: evaluate them, too.
        sensitivity: sum up their updates as unit vectors, too.
        write: (K,) fresh addresses on the worker's node; set when a worker gets the task. None: nothing is kept.
    """

    kind = "train"
    passes = 3.0  # the backward pass costs two forward passes

    weights: dict[str, Weights]
    reports: NDArray[np.bool_]
    work_share: Floats | None = None
    pooled: Ints | None = None
    evaluate: bool = False
    sensitivity: bool = False
    write: Ints | None = None

    def compute(self, engine: ClientEngine, broadcast: Tensors, states: Rows) -> Trained:
        training = LocalTraining(
            self.round,
            self.clients,
            self.weights,
            engine.config.train.local_epochs,
            self._messages(engine),
            evaluate=self.evaluate,
            sensitivity=self.sensitivity,
            pooled=self.pooled,
            work_share=self.work_share,
        )
        return engine.train(training, broadcast, states)

    def of_one(self, i: int) -> Task:
        one = slice(i, i + 1)
        alone = super().of_one(i)
        assert isinstance(alone, Train)
        return replace(
            alone,
            weights={name: w[one] for name, w in self.weights.items()},
            reports=self.reports[one],
            work_share=self.work_share[one] if self.work_share is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class Prepare(Train):
    """Train clients before round 0, for what the server must know of them; they keep nothing of it."""

    kind = "prepare"

    def compute(self, engine: ClientEngine, broadcast: Tensors, states: Rows) -> Trained:
        epochs = engine.config.train.local_epochs
        training = LocalTraining(
            0, self.clients, self.weights, epochs, self._messages(engine), evaluate=False, prepare=True
        )
        return engine.train(training, broadcast, states)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Task):
    """Evaluate clients with the server's shared parameters and their own states."""

    kind = "evaluate"
    passes = 1.0

    def compute(self, engine: ClientEngine, broadcast: Tensors, states: Rows) -> Evaluation:
        return engine.evaluate(self.round, self.clients, broadcast, states, messages=self._messages(engine))


@dataclass(frozen=True, kw_only=True)
class EvaluateGlobal(Task):
    """Evaluate the shared model on the clients' test samples."""

    kind = "global"
    passes = 1.0
    reads_states = False

    def compute(self, engine: ClientEngine, broadcast: Tensors, states: Rows) -> Evaluation:
        return engine.evaluate_global(self.clients, broadcast)


@dataclass(frozen=True, kw_only=True)
class EvaluateNewClients(Task):
    """Evaluate clients that never took part, with what they were given: before any training or adaptation."""

    kind = "unadapted"
    passes = 1.0

    def compute(self, engine: ClientEngine, broadcast: Tensors, states: Rows) -> Evaluation:
        return engine.evaluate(self.round, self.clients, broadcast, states, False, self._messages(engine))


@dataclass(frozen=True, kw_only=True)
class AdaptNewClients(Task):
    """Train clients that never took part for ``evaluate.adapt_epochs``, evaluate them, and forget what they trained.

    They train at the full learning rate, since ``train.schedule`` applies only to the federation's rounds.
    """

    kind = "adapted"
    passes = 3.0

    def compute(self, engine: ClientEngine, broadcast: Tensors, states: Rows) -> Evaluation:
        ones = Weights(np.ones(len(self.clients), np.int64), len(self.clients))
        training = LocalTraining(
            self.round,
            self.clients,
            {"samples": ones, "uniform": ones},
            engine.config.evaluate.adapt_epochs,
            self._messages(engine),
            full_rate=True,
        )
        evaluation = engine.train(training, broadcast, states).evaluation
        assert evaluation is not None
        return evaluation


@dataclass(frozen=True)
class TrainingReport:
    """What the driver gets back from a ``Train`` task: a few numbers per client. Its sums stay with the worker."""

    accepted: NDArray[np.bool_]
    metrics: dict[str, Floats]
    metric_samples: dict[str, Floats]
    squared_updates: dict[str, Floats]
    evaluation: Evaluation | None
    traffic: Floats | None = None

    @classmethod
    def of(cls, trained: Trained) -> TrainingReport:
        return cls(
            trained.accepted,
            trained.metrics,
            trained.metric_samples,
            trained.squared_updates,
            trained.evaluation,
            trained.traffic,
        )


@dataclass(frozen=True)
class TaskResult:
    """A completed task, its outcome, and when and where it ran."""

    task: Task
    outcome: TrainingReport | Evaluation
    started: float = 0.0
    """Seconds since 1970, by the clock of the actor's node."""
    seconds: float = 0.0
    """How long the actor was busy with the task."""
    actor: int = -1
    """Number of the actor in its pool."""

    @property
    def evaluation(self) -> Evaluation | None:
        """The clients' evaluation, if they were evaluated."""
        return self.outcome.evaluation if isinstance(self.outcome, TrainingReport) else self.outcome


def trained_in(results: Sequence[TaskResult]) -> list[tuple[Train, TrainingReport]]:
    """The tasks that trained clients, with what the driver learns of them."""
    return [(r.task, r.outcome) for r in results if isinstance(r.task, Train) and isinstance(r.outcome, TrainingReport)]


def evaluations_of(results: Sequence[TaskResult], *kinds: type[Task]) -> list[Evaluation]:
    """The evaluations that tasks of these kinds brought."""
    return [r.evaluation for r in results if isinstance(r.task, kinds) and r.evaluation is not None]
