"""The errors of raysim: those that a user sees, and those by which rooms signal each other how work ends."""

from __future__ import annotations


class ConfigError(ValueError):
    """A mistake in the configuration, the data or the asked resources; the message says where and what to do."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class ClientError(RuntimeError):
    """Training or evaluating clients failed: their algorithm raised (with its traceback), or kills its workers."""


class WorkersLost(ClientError):
    """Actors can't be started, or their sums not be collected: not what the clients did."""


class OutOfDeviceMemory(ClientError):
    """A client batch did not fit into an actor's GPU."""


class BrokenDevice(RuntimeError):
    """A worker's GPU can't be used by its process any more: another worker takes its place."""


class CheckpointError(ValueError):
    """A file of a checkpoint is missing, damaged or foreign."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(f"{name}: {problem}")


class StatesLost(RuntimeError):
    """Personal states can't be read, since the node that had them is gone; the run goes back to its last checkpoint."""


class Stopped(Exception):
    """The run was asked to stop."""
