"""How long tasks are expected to take, judging by earlier tasks of the same run."""

from __future__ import annotations

from raysim.training.tasks import Task, TaskResult

# The limits of ``resources.client_timeout: auto``, in seconds, and as a multiple of the expected duration.
LEAST_TIMEOUT = 60.0
COMPILING_TIMEOUT = 900.0
UNMEASURED_TIMEOUT = 1800.0
TIMES_EXPECTED = 20.0


class TaskDurations:
    """Seconds per sample of each kind of task, as measured in this run; decides the order of tasks, never a result."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._per_pass = 1.0  # seconds per sample and forward pass, for kinds that were not measured yet

    def expected(self, task: Task) -> float:
        """Expected seconds; before the first measurement only relative values, which suffice to order tasks."""
        return self._seconds.get(task.kind, task.passes * self._per_pass) * task.samples

    def measure(self, result: TaskResult) -> None:
        """Take a task's duration into account."""
        task = result.task
        now = result.seconds / task.samples
        if not self._seconds:
            self._per_pass = now / task.passes
        self._seconds[task.kind] = 0.8 * self._seconds[task.kind] + 0.2 * now if task.kind in self._seconds else now

    def timeout(self, task: Task, compiles: bool) -> float:
        """Seconds after which a task is considered hung."""
        if task.kind not in self._seconds:
            return UNMEASURED_TIMEOUT
        least = COMPILING_TIMEOUT if compiles else LEAST_TIMEOUT
        return max(least, TIMES_EXPECTED * self.expected(task))
