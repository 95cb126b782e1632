"""The keys under ``cohort:`` and ``evaluate:``: who trains in a round, and who is evaluated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysim.config.sections.section import Auto, Positive, Section
from raysim.own_code import OWN


class CohortConfig(Section):
    """Which clients train in a round (exactly one of ``fraction``, ``size``, ``schedule``), and how they may fail."""

    fraction: float | None = Field(None, gt=0, le=1)
    """Share of the clients, sampled without replacement, at least one."""
    size: int | None = Field(None, ge=1)
    """Number of clients, sampled without replacement."""
    schedule: list[list[int]] | None = None
    """A list of the client ids of every round."""
    sampling: Literal["uniform"] | Annotated[str, Field(pattern=OWN)] = "uniform"
    """How a cohort is drawn: every client with the same chance; or your own, ``module:function``: called with the round, the
    number of clients, the size of the cohort and a generator, it returns client ids, the same whenever it is called."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Simulated: the chance that a client trains but never reports. Its state changes; the mean is over the others."""
    stragglers: float = Field(0.0, ge=0, le=1)
    """Simulated: the chance that a client is slow in a round: it does a random share of its steps, at least one."""
    on_failure: Literal["stop", "drop"] = "stop"
    """What to do about a client batch that kills its worker more than ``resources.max_retries`` times: stop the run, or go on
    without its clients, counted in ``cohort/dropped``. Such a result is not reproducible."""

    @model_validator(mode="after")
    def _exactly_one(self) -> CohortConfig:
        given = [k for k in ("fraction", "size", "schedule") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of fraction, size, schedule (here: {', '.join(given) or 'none'}); null unsets a key"
            )
        if self.schedule is not None and self.sampling != "uniform":
            raise ValueError("'sampling' is not used by a schedule, which names the clients of every round")
        for round, ids in enumerate(self.schedule or ()):
            if not ids or len(set(ids)) != len(ids) or min(ids) < 0:
                raise ValueError(f"schedule[{round}] is {ids}: it must list at least one client id, each once, from 0")
        return self


class EvaluateConfig(Section):
    """Who is evaluated and when, and which model the headline is about."""

    every: Positive = 1
    """Evaluate once in this many rounds, and in the last round."""
    clients: Literal["all", "cohort"] | Positive = "all"
    """All clients, the round's cohort, or a fixed random sample of this size. The last round evaluates all, for the table of
    clients; its metrics are still about those asked for here."""
    protocol: Literal["paper", "aggregated"] = "paper"
    """The headline of tables and pictures; both are evaluated in any case. ``paper``: as trained (``personalized/...``), a
    client that has just trained with its own parameters before aggregation, any other with the round's incoming shared
    parameters and its personal ones. ``aggregated``: everyone with the shared parameters after the server step and their
    personal ones (``aggregated/...``)."""
    sensitivity: Auto | bool | Positive = "auto"
    """Measure how much the clients' updates disagree, per type of layer (``sensitivity/...``): in every round, in none, or
    once in this many rounds. It doubles what actors send in a round. auto: for up to 10 million shared parameters."""
    metrics: list[Annotated[str, Field(pattern=OWN)]] = []
    """Your own, ``module:function`` each: called with the results of the evaluated clients and the labels of their test
    samples, it returns numbers by name, which are logged as ``personalized/<name>`` and ``aggregated/<name>``; on validation
    samples as ``validation/<name>``."""
    new_clients: int = Field(0, ge=0)
    """Clients beyond ``data.num_clients`` that never take part. After the last round they get the final shared parameters,
    train ``adapt_epochs`` on their own training split, and are evaluated before and after: ``new_clients/...``."""
    adapt_epochs: Positive = 1
    """new_clients: local epochs of their adaptation, as the algorithm trains its clients, at the full learning rate."""
