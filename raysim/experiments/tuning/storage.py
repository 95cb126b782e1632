"""Optuna's storage: a SQLite file beside the MLflow store, in which every finished trial of every tuning is kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from raysim.config.locations import home
from raysim.errors import ConfigError

NAME = "optuna.db"
WAIT_SECONDS = 30  # for another process that writes
SQLITE = "sqlite:///"


def storage_file(tracking_uri: str) -> Path:
    """Beside a SQLite store of MLflow; for one on a server in the directory of the command."""
    if tracking_uri.startswith(SQLITE):
        return Path(tracking_uri.removeprefix(SQLITE)).absolute().parent / NAME
    return home() / NAME


def open_storage(file: str | Path) -> RDBStorage:
    """Optuna's storage in a file, which is made if it is not there."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return RDBStorage(f"{SQLITE}{file}", engine_kwargs={"connect_args": {"timeout": WAIT_SECONDS}})


@contextmanager
def only_here(file: Path) -> Iterator[RDBStorage]:
    """The storage for this process alone, as long as it lives.

    Raises:
        ConfigError: another process tunes with it, or it is damaged, or locked by something else.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{file}.lock")
    try:
        lock.acquire(timeout=1.0)
    except Timeout as error:
        raise ConfigError(f"{file}: another `raysim tune` is at work with it; wait for its end") from error
    try:
        try:
            storage = open_storage(file)
        except RuntimeError as error:  # of another version of Optuna
            raise ConfigError(f"{file}: {error}") from error
        yield storage
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"{file}: Optuna's storage can't be used: {cause}. What was finished is in MLflow, too. If it is locked, end the "
            "process that has it open and give the same command again; if it is damaged, move it away: the tuning then "
            "starts over"
        ) from error
    finally:
        lock.release()
