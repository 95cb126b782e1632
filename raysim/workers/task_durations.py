"""What client batches are expected to cost, from what those before them took."""

from __future__ import annotations

from raysim.training.tasks import Task, TaskResult

AUTO_TIMEOUT = {"least": 60.0, "compiling": 900.0, "unmeasured": 1800.0, "times": 20.0}  # of resources.client_timeout


class Costs:
    """Seconds per sample of each kind of task, as measured in this run; decides the order of tasks, never a result."""

    def __init__(self) -> None:
        # Before the first measurement: a step of training is a forward and a backward pass, which costs two of those.
        self._seconds: dict[str, float] = {"train": 3.0, "adapted": 3.0} | dict.fromkeys(
            ("evaluate", "unadapted", "global"), 1.0
        )
        self._measured: set[str] = set()

    def expected(self, task: Task) -> float:
        return self._seconds[task.kind] * task.samples

    def measured(self, result: TaskResult) -> None:
        kind, now = result.task.kind, result.seconds / result.task.samples
        if not self._measured:  # all other kinds are guessed in proportion
            scale = now / self._seconds[kind]
            self._seconds = {k: v * scale for k, v in self._seconds.items()}
        self._seconds[kind] = 0.8 * self._seconds[kind] + 0.2 * now if kind in self._measured else now
        self._measured.add(kind)

    def deadline(self, task: Task, compiles: bool) -> float:
        """Seconds after which a task is taken to hang."""
        if task.kind not in self._measured:
            return AUTO_TIMEOUT["unmeasured"]
        least = AUTO_TIMEOUT["compiling" if compiles else "least"]
        return max(least, AUTO_TIMEOUT["times"] * self.expected(task))
