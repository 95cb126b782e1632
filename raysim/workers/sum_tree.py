"""Where partial sums meet: on their node first, then along a tree of nodes, so that the driver gets one.

A sum of a ViT-S is 350 MB with its directions; from every actor of a cluster they would all go to one node. Only references
pass through the driver here; Ray moves the sums from node to node.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray

from raysim.workers.worker import Worker

FAN_IN = 4  # sums that meet in an actor at a time; so few are collected directly if they are all on one node
Sum = tuple[Worker, ray.ObjectRef]


def root_of_sums(refs: Sequence[Sum], round: int) -> ray.ObjectRef | None:
    """A reference to the sum of all partial sums, each given with its actor; None if there is nothing to be gained."""
    nodes: dict[str, list[Sum]] = {}
    for worker, ref in refs:
        nodes.setdefault(worker.machine.node if worker.machine is not None else "", []).append((worker, ref))
    if len(refs) <= 1 or (len(nodes) == 1 and len(refs) <= FAN_IN):
        return None
    return _meet([_meet(here, round) for here in nodes.values()], round)[1]


def depth(sums: int) -> int:
    """How many times a sum meets others at most: on its node, and then among nodes."""
    levels = 0
    while FAN_IN**levels < sums:
        levels += 1
    return levels + 1


def _meet(level: list[Sum], round: int) -> Sum:
    """One sum out of several, by a tree; each group meets in its first actor."""
    while len(level) > 1:
        level = [_group(level[i : i + FAN_IN], round) for i in range(0, len(level), FAN_IN)]
    return level[0]


def _group(group: list[Sum], round: int) -> Sum:
    first, ref = group[0]
    return first, first.handle.merged.remote(round, *(part for _, part in group)) if len(group) > 1 else ref
