"""The folder of a command's runs: the requested configuration, the MLflow id of each run, and which runs are finished.

quickstart-20261123-015959-3f9a1c/
    study.json           this module's
    journal/             rounds on their way to MLflow, one file for each run
    00-fedperfix-seed-0/ checkpoints of a run
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysim.config.dotted import flatten
from raysim.config.loading import children
from raysim.config.schema import Config
from raysim.errors import CheckpointError, ConfigError
from raysim.storage.checkpoint import manifest_name, newest, rounds_in
from raysim.storage.folder import Folder

NAME = "study.json"
LOCK_SECONDS = 20  # for a process that was just killed to be gone
# Keys that change no result; all others must be equal when a run goes on.
FREE = re.compile(r"name|study|tune(\..*)?|callbacks|tracking\..*|checkpoint\..*|cohort\.on_failure|resources\..*")
FIXED = re.compile(r"resources\.(device|clients_per_batch|batches_per_round|precision|compile)")


class RunState(BaseModel):
    """A run of the study."""

    model_config = ConfigDict(strict=True, extra="forbid")
    entry: str
    name: str
    folder: str = Field(pattern=r"^[-\w.]+$")
    run_id: str | None = None
    """The id in MLflow, once the run was started."""
    facts: dict[str, str] = {}
    """What it was started with: the digests of what its results depend on, and ``clients_per_batch``."""
    finished: bool = False
    checksums: dict[str, str] = {}


class StudyState(BaseModel):
    """What ``study.json`` says."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: Literal[3] = 3
    config: dict[str, Any]
    """The configuration as given, with ``auto`` values unresolved."""
    tracking_uri: str
    experiment: str
    git_commit: str | None
    parent: str | None = None
    """The study's own run in MLflow."""
    of_tuning: bool = False
    """Its runs are trials: they belong to a parent that the tuning has opened and describes, and have no pictures."""
    runs: list[RunState]
    finished: bool = False
    starts: int = 0
    """How often the driver was started since the last checkpoint."""


def new_name(config: Config) -> str:
    """A name for the folder: the configuration's name, the time, and a random part that makes it unique."""
    return f"{_slug(config.name)}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "run"


def new_state(
    config: Config, uri: str, experiment: str, git_commit: str | None, tuning: str | None = None
) -> StudyState:
    """Of runs that are yet to start; ``tuning`` is the run in MLflow that trials belong to."""
    runs = [
        RunState(entry=entry, name=child.name, folder=f"{i:02d}-{_slug(child.name)}")
        for i, (entry, child) in enumerate(children(config))
    ]
    asked = config.model_dump(mode="json")
    return StudyState(
        config=asked,
        tracking_uri=uri,
        experiment=experiment,
        git_commit=git_commit,
        parent=tuning,
        runs=runs,
        of_tuning=tuning is not None,
    )


class StudyFolder:
    """``study.json`` in a folder, and the folders of the runs."""

    def __init__(self, uri: str) -> None:
        self.folder = Folder(uri)
        self._lock: int | None = None

    @property
    def uri(self) -> str:
        return self.folder.uri

    def read(self) -> StudyState | None:
        """None if nothing was written yet.

        Raises:
            ConfigError: the file is damaged, or not from this version of raysim.
        """
        try:
            text = self.folder.read(NAME)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.uri}/{NAME}: can't be read: {error}") from error
        try:
            return StudyState.model_validate(json.loads(text))
        except (ValueError, RecursionError) as error:
            what = f"{error.error_count()} fields are wrong" if isinstance(error, ValidationError) else str(error)
            raise ConfigError(f"{self.uri}/{NAME}: is damaged or not of this version of raysim: {what}") from error

    def write(self, state: StudyState) -> None:
        self.folder.write(NAME, state.model_dump_json(indent=1).encode())

    def of(self, run: RunState) -> Folder:
        return self.folder / run.folder

    def journal(self, run: RunState, home: Path) -> Path:
        """The journal of a run, always on a local disk."""
        beside = self.folder.local if self.folder.local is not None else home / "journals" / self.folder.name
        return beside / "journal" / f"{run.folder}.jsonl"

    def lock(self) -> None:
        """Keep other processes away as long as this one lives; folders that are not local can't be locked.

        Raises:
            ConfigError: another process has it.
        """
        if self.folder.local is None:
            return
        self.folder.local.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder.local / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        give_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > give_up:
                    os.close(handle)
                    raise ConfigError(
                        f"{self.uri}: another process is at work on these runs; `raysim attach {self.uri}` shows them, "
                        "`raysim run --fresh` starts the same runs over"
                    ) from error
            time.sleep(0.2)
        self._lock = handle

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys that differ and would change a result, each with both values.

    More rounds than before change none of those that there are, unless a learning rate or a method depends on their number.
    """
    before, now = dict(flatten(_completed(old))), dict(flatten(dict(new)))
    kept = {key for key in before.keys() | now.keys() if FIXED.fullmatch(key) or not FREE.match(key)}
    if _has_more_rounds(old, new):
        kept.remove("rounds")
    missing = "(not there)"
    return [
        f"{key}: was {before.get(key, missing)!r}, is {now.get(key, missing)!r}"
        for key in sorted(kept)
        if before.get(key, missing) != now.get(key, missing)
    ]


def _has_more_rounds(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether ``new`` only goes on where ``old`` ends."""
    if new["rounds"] <= old["rounds"]:
        return False
    runs = [run for _, run in children(Config.model_validate(new))]
    return not any(run.train.schedule == "cosine" or run.algorithm.depends_on_rounds for run in runs)


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of an earlier version with the keys that it did not have, as they are by default."""
    try:
        return Config.model_validate(dict(config)).model_dump(mode="json")
    except ValueError:  # it has others that are not there any more
        return dict(config)


def unfinished(root: str, config: Config, uri: str) -> str | None:
    """The newest folder in ``root`` of an unfinished study with the same configuration."""
    return _newest(root, config, uri, is_finished=False)


def finished(root: str, config: Config, uri: str) -> StudyFolder | None:
    """The newest folder in ``root`` of a finished study with the same configuration."""
    found = _newest(root, config, uri, is_finished=True)
    return StudyFolder(found) if found is not None else None


def _newest(root: str, config: Config, uri: str, is_finished: bool) -> str | None:
    asked = _results_of(config.model_dump(mode="json"))
    found: list[tuple[str, str]] = []
    for name in Folder(root).folders():
        folder = StudyFolder(f"{root.rstrip('/')}/{name}")
        try:
            state = folder.read()
        except ConfigError:
            continue  # from another version; it is reported only if the user names it
        if state is None or state.finished is not is_finished or state.tracking_uri != uri:
            continue
        if _results_of(state.config) == asked:
            found.append((name[-22:-7], folder.uri))  # by the time in the name
    return max(found)[1] if found else None


def _results_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the keys that may change when its runs are continued."""
    kept = {key: value for key, value in config["resources"].items() if FIXED.fullmatch(f"resources.{key}")}
    study = [{**entry, "callbacks": None} for entry in config["study"] or ()]
    return {**config, "resources": kept, "checkpoint": None, "callbacks": None, "study": study}


def check_checkpoints(folder: StudyFolder, state: StudyState, from_round: int | None, more: bool = False) -> list[str]:
    """Verify the newest checkpoint of every unfinished run; returns a line for each that says where it continues.

    ``from_round``: forget the checkpoints of later rounds first. ``more``: finished runs go on, too, for more rounds.

    Raises:
        ConfigError: the newest one of a run is damaged; names the file, and the checkpoint that could be used instead.
    """
    lines = []
    for run in state.runs:
        if (run.finished and not more) or run.run_id is None:
            continue
        place = folder.of(run)
        if from_round is not None:
            for round in rounds_in(place):
                if round > from_round:
                    place.delete(manifest_name(round))
        intact, problems = newest(place)
        if problems:
            raise ConfigError(_damaged(folder, place, problems, intact.manifest.round if intact else 0))
        ended = intact is not None and intact.manifest.ends_after == intact.manifest.round and not more
        after = intact.manifest.round if intact else 0
        lines.append(f"{run.name}: {f'has ended after round {after}' if ended else f'goes on with round {after + 1}'}")
    return lines


def _damaged(folder: StudyFolder, place: Folder, problems: Sequence[CheckpointError], round: int) -> str:
    where = f"the checkpoint of {round} rounds is intact" if round else "no other checkpoint is intact"
    return (
        f"{place.uri}/{problems[0].name}: {problems[0].problem}; {where}. To go on from there: "
        f"raysim resume {folder.uri} --round {round}"
    )
