"""All that raysim uses of Ray's private parts, since there is no public way; and since when each works.

``tests/workers/test_ray_private.py`` fails for the one that a new version of Ray has changed.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get


def be_quiet_about_authentication() -> None:
    """A logger of ``ray.init`` tells users how to switch a protection off. Since Ray 2.52; earlier ones do not log it."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def most_of_cluster() -> Any:
    """What the newer autoscaler could start; nothing if there is none. Since Ray 2.46."""
    return ray._private.state.state.get_max_resources_from_cluster_config()


def autoscaler_report() -> dict[str, Any]:
    """What the older autoscaler says; empty if there is none."""
    status = json.loads(_internal_kv_get("__autoscaling_status") or b"{}")
    report: dict[str, Any] = status.get("autoscaler_report") or {}
    return report


def stderr_of_worker() -> str:
    """The file that has what this worker process prints to stderr."""
    path: str = ray._private.worker.global_worker.get_err_file_path()
    return path


def object_store_bytes() -> int:
    """Total bytes that any process has ever put into the cluster's object stores."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address  # only `raysim bench` needs it

    here = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    return int(get_memory_info_reply(get_state_from_address(here)).store_stats.cumulative_created_bytes)
