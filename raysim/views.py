"""What an accuracy is about: which model, on which clients, in which rounds.

Every evaluated round has two families of metrics about the same clients, ``personalized/...`` and ``aggregated/...``;
``evaluate.protocol`` chooses which one is the headline. Tables and pictures print their titles from a ``View``, and numbers
of different views never stand in one column.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Model = Literal["personalized", "aggregated", "global", "unadapted", "adapted"]
MODELS: dict[Model, str] = {
    "personalized": "as trained",
    "aggregated": "after aggregation",
    "global": "shared parameters alone",
    "unadapted": "before any adaptation",
    "adapted": "after adaptation",
}
"""In words. ``personalized``: of a client that has just trained its own parameters, before aggregation; of any other the
shared parameters that the round started with and its personal ones. ``aggregated``: the shared parameters after the
server step and the client's personal ones. ``global``: these shared parameters alone, where a method shares everything.
``unadapted`` and ``adapted``: clients that never took part, with what they are given, and after local training."""
FAMILIES: tuple[Model, Model] = ("personalized", "aggregated")
"""Those that every evaluated round has."""
OF_CLIENTS = (
    *(f"accuracy_{what}" for what in ("mean", "std", "weighted", "worst_decile")),
    *(f"auc_{what}" for what in ("mean", "weighted", "micro")),
    "not_evaluated",
)
"""The metrics of a family that raysim computes; all others are a user's own."""
HEADLINE: dict[str, Model] = {"paper": "personalized", "aggregated": "aggregated"}
"""By ``evaluate.protocol``."""
VALIDATION = "validation"
"""The family of the headline's metrics on validation samples, in runs that have them."""
Kind = Literal["all", "cohort", "sample", "new"]


def headline(protocols: Iterable[str]) -> Model:
    """The model that numbers of runs with these values of ``evaluate.protocol`` are about.

    Where they disagree all are shown after aggregation: every run has that, too.
    """
    asked = set(protocols)
    return HEADLINE[asked.pop()] if len(asked) == 1 else "aggregated"


def validation_names(model: Model, headline: bool) -> list[str]:
    """The families of a model's metrics on validation samples: of the headline's model there are two."""
    return [f"{VALIDATION}/{model}", *([VALIDATION] if headline else [])]


@dataclass(frozen=True)
class ClientSet:
    """The clients that a number is about; ``size`` of them, None where it differs between runs."""

    kind: Kind
    size: int | None = None

    @classmethod
    def asked(cls, clients: str | int, num_clients: Iterable[int]) -> ClientSet:
        """As ``evaluate.clients`` asks for them in runs with these numbers of clients."""
        if clients == "all":
            sizes = set(num_clients)
            return cls("all", sizes.pop() if len(sizes) == 1 else None)
        return cls("cohort") if clients == "cohort" else cls("sample", int(clients))

    def __str__(self) -> str:
        number = "" if self.size is None else f"{self.size} "
        return {
            "all": f"all {number}clients",
            "cohort": "the cohort of each round",
            "sample": f"{number}clients drawn once",
            "new": f"{number}new clients",
        }[self.kind]


@dataclass(frozen=True)
class View:
    """Which model, on which clients, in which rounds.

    Attributes:
        rounds: counted from 0, ascending, the mean is over all of them; or in words, where they differ between runs.
    """

    model: Model
    clients: ClientSet
    rounds: tuple[int, ...] | str

    def metric(self, name: str) -> str:
        """A metric of the family, such as ``personalized/accuracy_mean``."""
        return f"{self.model}/{name}"

    def __str__(self) -> str:
        return f"{MODELS[self.model]}, {self.clients}, {self._when()}"

    def _when(self) -> str:
        if isinstance(self.rounds, str):
            return self.rounds
        at = [round + 1 for round in self.rounds]
        if len(at) == 1:
            return f"round {at[0]}"
        steps = {b - a for a, b in pairwise(at)}
        if steps == {1}:
            return f"mean of rounds {at[0]} to {at[-1]}"
        few = at if len(at) <= 6 or len(steps) > 1 else [at[0], at[1], "…", at[-1]]
        return f"mean of rounds {', '.join(map(str, few))}"
