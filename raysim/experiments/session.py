"""``session``: Ray, the driver and the client actors stay between the runs of one process: the next one starts at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from raysim.errors import ConfigError
from raysim.workers.cluster import using_ray

BEAT_SECONDS = 15.0  # a driver that nobody asks for its status for a minute ends itself

_current: Session | None = None


class Reusable(NamedTuple):
    """What must be equal for a driver to do another request."""

    resources: str
    path: tuple[str, ...]
    """From which modules are imported; the folder of the command comes first."""
    tracking_uri: str

    def now(self) -> tuple[Any, ...]:
        """With the identity of the store: MLflow keeps a file open that may have been deleted since."""
        file = Path(self.tracking_uri.removeprefix("sqlite:///"))
        return (*self, file.stat().st_ino if self.tracking_uri.startswith("sqlite:") and file.exists() else None)


class Session:
    """Keeps what a run has started for the next one. Use it as a context manager, or ``close`` it.

    The next run uses the same driver and actors if it has the same resources and MLflow store, and no code of yours, neither
    in the configuration nor as a callback: that is always imported anew, by new processes, on the Ray that is kept. So are
    actors on GPUs. Environment variables are those of the first run. ``raysim attach`` does not find runs of a session.
    """

    def __init__(self) -> None:
        self._ray = ExitStack()
        self._cluster: tuple[str, str, int] | None = None
        self._driver: Any = None
        self._key: tuple[Any, ...] | None = None
        self._lock, self._closed = threading.RLock(), threading.Event()
        threading.Thread(target=self._beat, name="session", daemon=True).start()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def use_ray(self, start: Callable[[], tuple[bool, str | None]], cpus: int) -> str | None:
        """Use a cluster until the session is closed, as ``using_ray`` does; returns its warning.

        It is started again where it would be another one: in another folder, with more logical ``cpus``, or if somebody has
        shut it down.
        """
        with self._lock:
            if self._cluster is not None:
                address, folder, had = self._cluster
                if _address() == address and folder == os.getcwd() and cpus <= had:
                    return None
                self._end()
            warning = self._ray.enter_context(using_ray(start))
            self._cluster = _address(), os.getcwd(), cpus
            return warning

    def driver(self, key: Reusable | None, request: object, new: Callable[[], Any]) -> Any:
        """A driver that works on a request: the last one if its ``key`` is the same, else a ``new`` one."""
        with self._lock:
            last, self._driver = self._driver, None  # none, should the run not end well
        if last is not None:
            try:
                if key is not None and key.now() == self._key and ray.get(last.take.remote(request)):
                    return last
            except RayError:
                pass  # it is gone, and another takes its place
            except BaseException:
                ray.kill(last)
                raise
            ray.kill(last)
        return new()

    def keep(self, driver: Any, key: Reusable | None) -> None:
        """A driver has finished its runs."""
        with self._lock:
            if key is None or self._driver is not None or self._closed.is_set():  # another thread's is kept
                ray.kill(driver)
            else:
                self._driver, self._key = driver, key.now()

    def close(self) -> None:
        """End all processes."""
        global _current
        self._closed.set()
        if _current is self:
            _current = None
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._driver is not None and self._cluster is not None and _address() == self._cluster[0]:
            ray.kill(self._driver)
        self._driver = self._cluster = None
        self._ray.close()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with self._lock:
                if self._driver is not None and self._cluster is not None and _address() == self._cluster[0]:
                    self._driver.status.remote("", 0)


def _address() -> str:
    """Of the cluster that this process is connected to; empty if there is none."""
    return str(ray.get_runtime_context().gcs_address) if ray.is_initialized() else ""


def session() -> Session:
    """Keep Ray and its processes between the runs of this process, as in a notebook, until the session is closed.

    Raises:
        ConfigError: there is one already.
    """
    global _current
    if _current is not None:
        raise ConfigError("there is a session already: close it first")
    _current = Session()
    return _current


def current() -> Session | None:
    """The session that is open, if any."""
    return _current
