"""What a result depends on besides the configuration's values: the source of the algorithm."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache

from algorithms import FederatedAlgorithm
from raysim.config.schema import Config


@cache
def _source(cls: type[FederatedAlgorithm]) -> str:
    # Cached: what this process imported, even if the file is edited later.
    return inspect.getsource(cls)


def algorithm_digest(config: Config) -> str:
    """SHA-256 of the source of the algorithm's class and of its base classes, as this process imported them."""
    own = [cls for cls in type(config.algorithm).__mro__ if issubclass(cls, FederatedAlgorithm)]
    return hashlib.sha256("\n".join(map(_source, own)).encode()).hexdigest()
