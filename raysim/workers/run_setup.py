"""What the driver and the client actors tell each other about a run, before its first task."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from raysim.config.schema import Config


@dataclass(frozen=True)
class RunSetup:
    """What an actor needs for a run. The large arrays are in the object store, once per node, and read in place.

    Attributes:
        images: an array, or the key (str) of a cache on each node's disk.
        images_digest: of the pixels in that cache.
    """

    config: Config
    images: ray.ObjectRef
    labels: ray.ObjectRef
    partition: ray.ObjectRef
    initial: ray.ObjectRef
    frozen: ray.ObjectRef
    """The frozen parameters, which are not in ``initial``: name to array."""
    num_classes: int
    in_channels: int
    algorithm_digest: str
    """Digest of the algorithm's source as the driver imported it (``config/fingerprint.py``)."""
    images_digest: str = ""


@dataclass(frozen=True)
class Machine:
    """What an actor computes on, and its process; its answer to ``configure``."""

    device: str
    device_name: str
    """The GPU model or the CPU instruction set; where it is equal, results are bit-identical."""
    algorithm_digest: str
    """Digest of the algorithm's source as this actor imported it."""
    node: str
    """Ray's id of its node."""
    pid: int
    log: str
    """Path of its standard error on that node."""
    gpus: str = ""
    """Ray's ids of the GPUs that it has a share of, on that node."""
