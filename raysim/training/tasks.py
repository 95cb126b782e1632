"""What travels between the driver and the client actors."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import ray
from numpy.typing import NDArray

from algorithms import FederatedAlgorithm
from raysim.config.schema import Config

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RunSetup:
    """What an actor needs for a run. The large arrays are in the object store, once per node, and read in place."""

    config: Config
    images: ray.ObjectRef
    labels: ray.ObjectRef
    partition: ray.ObjectRef
    initial: ray.ObjectRef
    frozen: ray.ObjectRef
    """Name to array, of the parameters that are not in ``initial``."""
    num_classes: int
    in_channels: int
    code: str
    """Of the algorithm, as the driver has it: ``algorithm_code``."""


@cache
def _source(cls: type[FederatedAlgorithm]) -> str:
    return inspect.getsource(cls)  # of the file as it is now: asked once, soon after the import


def algorithm_code(config: Config) -> str:
    """SHA-256 of the source of the algorithm's class and of those that it is made from, as this process has them."""
    own = [cls for cls in type(config.algorithm).__mro__ if issubclass(cls, FederatedAlgorithm)]
    return hashlib.sha256("\n".join(map(_source, own)).encode()).hexdigest()


@dataclass(frozen=True)
class Task:
    """A client batch and what to do with it.

    Attributes:
        kind: ``train`` (and evaluate, if ``evaluate``), ``evaluate``, or ``global``: the shared model on these clients; of
            clients that never took part ``unadapted``, as ``evaluate``, and ``adapted``: train, evaluate and forget.
        index: position among the round's tasks.
        weights: planned shares (K,) by weighting.
        read: addresses (K,) of the clients' states.
        write: fresh addresses (K,) on the worker's node, for ``train`` only; given when a worker gets the task.
        reports: (K,) who reports to the server (``cohort.dropout``); the weight of the others is 0.
        work: (K,) the share of its local steps that each client does (``cohort.stragglers``); None is all of them.
        messages: rows (K, m) of ``FederatedAlgorithm.server_messages``.
        pooled: samples to train on in place of the client's own (``FederatedAlgorithm.pooled``); K is 1.
        samples: that go through the model, padding included; what it is expected to cost.
    """

    kind: Literal["train", "evaluate", "global", "unadapted", "adapted"]
    index: int
    round: int
    clients: Ints
    read: Ints
    write: Ints | None = None
    weights: dict[str, Floats] | None = None
    reports: NDArray[np.bool_] | None = None
    work: Floats | None = None
    messages: dict[str, NDArray[np.float32]] | None = None
    pooled: Ints | None = None
    evaluate: bool = False
    samples: int = 1


@dataclass(frozen=True)
class Evaluation:
    """Per client of a batch: how many test samples were classified correctly, and the probabilities of all of them."""

    clients: Ints
    correct: Ints
    num_test: Ints
    probabilities: NDArray[np.float32]
    """(sum of num_test, classes), client after client."""


@dataclass(frozen=True)
class TaskResult:
    """What comes back to the driver: a few numbers per client; sums stay in the actor until the end of the round."""

    task: Task
    accepted: NDArray[np.bool_] | None
    metrics: dict[str, Floats]
    squared_updates: dict[str, Floats]
    evaluation: Evaluation | None
    started: float = 0.0
    """Seconds since 1970, by the clock of the actor's node."""
    seconds: float = 0.0
    """For which the actor was busy with it."""
    actor: int = -1
    """Number of the actor in its pool."""
