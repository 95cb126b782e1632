"""The runs in MLflow that trials belong to."""

from __future__ import annotations

from collections.abc import Mapping

from raysim.config.dotted import flatten
from raysim.config.loading import dump
from raysim.config.schema import Config
from raysim.experiments.tuning.plans import Plan
from raysim.experiments.tuning.search import Search
from raysim.tracking.mlflow_store import MLflowStore
from raysim.tracking.run_description import describe_tuning
from raysim.tracking.tags import DESCRIPTION_TAG

KIND_TAG = "raysim.kind"
SHOWN = ("best_so_far.png", "importance.png")
"""The pictures of the report on the page of its run."""
PARENT, WHOLE = "parent", "whole"
"""What is kept of a search: the ids in MLflow of the run that its trials belong to, and of the whole tuning."""


class ParentRuns:
    """The runs in MLflow that trials belong to: one for the tuning, and one for each search below it."""

    def __init__(self, store: MLflowStore, config: Config) -> None:
        self._store, self._config, self._whole = store, config, ""

    def of(self, search: Search, plan: Plan) -> str:
        """The id of the run of a search: made, or opened again."""
        self._whole = self._whole or search.kept(self._key(WHOLE)) or self._start()
        parent = search.kept(self._key(PARENT))
        if parent is None:
            tags = {KIND_TAG: "search", "raysim.algorithm": plan.config.algorithm.name}
            space = {key: str(given) for key, given in plan.space.items()}
            name = f"tune · {plan.entry}" + (", lr only" if plan.setting == "lr only" else "")
            parent = self._store.start(name, space, tags, self._whole)
            search.keep(self._key(PARENT), parent)
            search.keep(self._key(WHOLE), self._whole)
        self._store.reopen(parent)
        return parent

    def _key(self, what: str) -> str:
        """In this experiment: under another name, or in a new store, the same search has other runs."""
        return f"{what} in {self._store.experiment_id}"

    def _start(self) -> str:
        assert self._config.tune is not None
        parameters = dict(flatten(self._config.tune.model_dump(mode="json"), "tune."))
        whole = self._store.start(f"tuning · {self._config.name}", parameters, {KIND_TAG: "tuning"})
        self._store.log_text(whole, dump(self._config), "config.yaml")
        return whole

    def finish(self, files: Mapping[str, bytes]) -> None:
        """Log the report, and close the tuning's own run."""
        self._store.log_files(self._whole, files)
        text = describe_tuning(files["tuning.md"].decode(), [name for name in SHOWN if name in files], self._whole)
        self._store.set_tags(self._whole, {DESCRIPTION_TAG: text})
        self._store.end(self._whole, "FINISHED")
