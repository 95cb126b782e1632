"""Paths that a configuration gives."""

from __future__ import annotations

from pathlib import Path

from raysim.errors import ConfigError


def local_path(text: str, key: str) -> Path:
    """The path that a key of the configuration gives, with ``~`` replaced.

    Raises:
        ConfigError: no file can have such a name (too long, an unknown user, no permission to look).
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}: {text!r:.200} can't be looked up: {error!s:.200}") from error
    return path
