"""``session``: Ray, the driver and the client actors stay between the runs of one process: the next one starts at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from raysim.errors import ConfigError
from raysim.workers.cluster import using_ray

BEAT_SECONDS = 15.0  # a driver that nobody asks for its status for a minute ends itself

_current: Session | None = None


class Session:
    """Keeps what a run has started for the next one. Use it as a context manager, or ``close`` it.

    A driver does other runs only if they use the same resources and the same code of yours: whatever has changed in your
    modules, or in what a notebook defines, starts new processes. Actors on GPUs are always started anew.
    """

    def __init__(self) -> None:
        self._ray = ExitStack()
        self._driver: Any = None
        self._key: object = None
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="session", daemon=True).start()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def use_ray(self, start: Callable[[], tuple[bool, str | None]]) -> None:
        """Use a cluster as ``using_ray`` does, until the session is closed."""
        if not ray.is_initialized():
            self._ray.close()  # of a cluster that somebody has shut down
            self._driver = None
            self._ray.enter_context(using_ray(start))

    def driver(self, key: object, request: object, new: Callable[[], Any]) -> Any:
        """A driver that works on a request: the last one if its ``key`` is the same, else a ``new`` one."""
        last, self._driver = self._driver, None  # none, should the run not end well
        if last is not None:
            try:
                if key == self._key and ray.get(last.take.remote(request)):
                    return last
            except RayError:
                pass  # it is gone, and another takes its place
            ray.kill(last)
        return new()

    def keep(self, driver: Any, key: object) -> None:
        """A driver has finished its runs."""
        self._driver, self._key = driver, key

    def close(self) -> None:
        """End all processes."""
        global _current
        self._closed.set()
        if _current is self:
            _current = None
        if self._driver is not None and ray.is_initialized():
            ray.kill(self._driver)
        self._driver = None
        self._ray.close()

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            driver = self._driver
            if driver is not None and ray.is_initialized():
                driver.status.remote("", 0)


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
