"""``FederatedRun``: the rounds of a run. Sample a cohort, train it, aggregate, evaluate, commit.

Runs inside the driver actor, on CPU tensors; all training is done by the actors of the pool. It yields progress and
records and does not know who uses them: ``experiments/run.py`` has the loop over rounds.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from raysim.data.partition import Partition
from raysim.federation.client_batches import BatchPlanner
from raysim.federation.client_states import ClientStates
from raysim.federation.cohort import sample_cohort
from raysim.federation.evaluation_schedule import EvaluationSchedule
from raysim.federation.metrics.cohort import TrainedCohort
from raysim.federation.metrics.system import timeline
from raysim.federation.pending_rounds import PendingRound, PendingRounds, clients_of
from raysim.federation.round_metrics import RoundMetrics
from raysim.federation.server import Server
from raysim.functional.optimizers import Tensors
from raysim.functional.parameters import ParameterLayout
from raysim.storage.accuracy_history import BYTES_PER_CLIENT
from raysim.storage.checkpoint import Checkpoint, Snapshot
from raysim.storage.personal_states import check_space
from raysim.storage.records import Records, RoundRecord
from raysim.storage.server_rows import ServerRows
from raysim.training.aggregation import combine
from raysim.training.evaluation import evaluates_one_model
from raysim.training.sensitivity import DIRECTIONS
from raysim.training.tasks import BEFORE, AdaptNewClients, Prepare, Task, Train, trained_in
from raysim.views import FAMILIES
from raysim.workers.actor_pool import ActorPool
from raysim.workers.dispatch import Completed, Dispatch, Progress
from raysim.workers.remote_states import StateNodes
from raysim.workers.run_setup import RunSetup

Ints = NDArray[np.int64]


class FederatedRun:
    """One run from its first round, or from a checkpoint, to its last.

    Args:
        setup: as the actors get it; ``clients_per_batch`` must be resolved.
        layout: the layout of the model's parameters.
        pool: actors that are configured for this run.
        nodes: where the personal states of the run go, all slots still free.
        checkpoint: to go on from.
        domains: (N,) names of the clients' domains, for metrics of a user's own; None: they have none.

    Attributes:
        next_round: the round that ``round`` takes next.
        timeline: what ran where, when, in the last round but one, as ``plots.timeline`` draws it.

    Raises:
        ConfigError: the disk has no room for the personal states.
    """

    def __init__(
        self,
        setup: RunSetup,
        layout: ParameterLayout,
        pool: ActorPool,
        nodes: StateNodes,
        checkpoint: Checkpoint | None = None,
        domains: NDArray[np.str_] | None = None,
    ) -> None:
        config = self.config = setup.config
        self._algorithm, self._layout, self._pool = config.algorithm, layout, pool
        labels, partition, initial = ray.get([setup.labels, setup.partition, setup.initial])
        self._partition: Partition = partition
        theta = torch.from_numpy(initial.copy())
        self.states = ClientStates(self._algorithm.client_state(theta, layout), config.data.num_clients, nodes)
        samples = partition.num_train[: config.data.num_clients]
        self._server = Server(config, layout, theta, samples)
        self._schedule = EvaluationSchedule(config)
        ever_trained = min(config.data.num_clients, config.rounds * config.cohort_size)
        evaluations = self._schedule.num_due * len(self._schedule.reported(config.rounds - 1))
        accuracies = len(FAMILIES) * BYTES_PER_CLIENT * evaluations
        kept = self.states.layout.size + self._server.rows.layout.size
        check_space(nodes.folder, kept, ever_trained + config.cohort_size, accuracies)
        self._planner = BatchPlanner(config, partition, self.states.index)
        one_model = evaluates_one_model(self._algorithm, layout.num_personal)
        domains = np.zeros(partition.num_clients, "U1") if domains is None else domains
        self._metrics = RoundMetrics(config, layout, labels, partition, self._schedule, one_model, domains)
        self._evaluates_shared = not one_model and not layout.num_personal and self._algorithm.one_shared_model
        self._prepared = not self._algorithm.prepares
        self._pending = PendingRounds(config, self._metrics, self._schedule)
        self.next_round = 0
        self._begun = 0
        self.timeline: pd.DataFrame | None = None
        if checkpoint is not None:
            self._restore(checkpoint)
        self._server.send()

    def round(self) -> Iterator[Progress | RoundRecord]:
        """Run one round; yields the progress of its tasks, and the record of each round that is complete by now.

        What is evaluated with the parameters after the server step is evaluated beside the next round's training, which
        starts from those parameters; and metrics are computed while the actors are busy with the round after that. So the
        record of a round comes two calls later, those of the last ones with ``finish``.

        Raises:
            StatesLost: the node that had a client's state is gone; the run can't be used any more.
        """
        start, round = time.perf_counter(), self.next_round
        self._begun = round + 1
        if not self._prepared:
            yield from self._prepare()
        cohort = sample_cohort(self.config, round)
        sensitivity = self._schedule.measures_sensitivity(round, self._layout.num_shared)
        tasks = self._planner.train(round, cohort, self._schedule.is_due(round), sensitivity)
        completed = yield from self._run_tasks(round, tasks + self._evaluations(round, cohort, len(tasks)))
        if completed.results and round == max(0, self.rounds - 2):  # a typical round: the last evaluates more
            self.timeline = timeline(completed.results)
        trained = trained_in(completed.results)
        uploads = combine(completed.sums, round, {task.index for task, _ in trained})
        directions, incoming = uploads.sums.pop(DIRECTIONS, None), self._server.shared
        sent = self._server.broadcast_size + self._server.message_size
        dropped = clients_of(completed.dropped, training=True)
        reported = TrainedCohort(trained, self._partition.num_train, tuple(dropped))
        means = self._server.step(round, uploads, reported.clients[reported.reported])
        for task, report in trained:
            assert task.write is not None
            self.states.index.commit(task.clients, task.write, report.accepted)
        metrics = self._metrics.of_training(reported, incoming, means or {}, directions)
        metrics |= self._metrics.of_communication(sent, uploads, len(cohort), reported)
        busy = sum(result.seconds for result in completed.results)
        metrics |= self._metrics.of_system(start, cohort, trained, busy, len(self._pool.workers))
        lost = np.intersect1d(clients_of(completed.dropped, training=False), self._others(round, cohort)).tolist()
        self._pending.evaluated(completed)
        self._pending.add(PendingRound(round, metrics, completed.results, reported.rejected, dropped, lost))
        self.next_round = round + 1

    def _prepare(self) -> Iterator[Progress | RoundRecord]:
        """Before round 0: all clients train for what the server must know of them (``FederatedAlgorithm.prepares``)."""
        completed = yield from self._run_tasks(BEFORE, self._planner.prepare(np.arange(self.config.data.num_clients)))
        trained = trained_in(completed.results)
        cohort = TrainedCohort(trained, self._partition.num_train)
        if missing := sorted([*clients_of(completed.dropped, training=True), *cohort.rejected]):
            self._pool.notify(f"before the first round: what the server learns of all clients lacks clients {missing}")
        self._server.prepare(combine(completed.sums, BEFORE, {task.index for task, _ in trained}))
        self._prepared = True

    def finish(self) -> Iterator[Progress | RoundRecord]:
        """Run the evaluations that the last round still waits for; yields as ``round`` does."""
        if self._pending.waiting is not None:
            tasks = self._evaluations(self.next_round, np.empty(0, np.int64), 0)
            self._pending.evaluated((yield from self._run_tasks(self._pending.waiting.round, tasks)))
        yield from self._pending.completed()

    # The tasks of a round.

    def _evaluations(self, round: int, cohort: Ints, first: int) -> list[Task]:
        """What is evaluated with the parameters that a round starts from, beside the training of its cohort.

        That is what the round before waits for: its clients after aggregation, the shared model itself, new clients. And
        those clients of this round that do not train, who have the same parameters: one evaluation serves both.
        """
        clients = self._others(round, cohort)
        if (before := self._pending.waiting) is None:
            return self._planner.evaluate(round, clients, first)
        clients = np.union1d(clients, self._schedule.evaluated(before.round))
        tasks = self._planner.evaluate(round, clients, first)
        if self._evaluates_shared:
            about = self._schedule.reported(before.round)
            tasks += self._planner.evaluate_global(round, about, first + len(tasks))
        if self._schedule.is_last(before.round) and self.config.evaluate.new_clients:
            tasks += self._planner.adapt_new_clients(round, first + len(tasks))
        return tasks

    def _others(self, round: int, cohort: Ints) -> Ints:
        """The clients of a round's ``personalized/`` that do not train in it; a pooled model belongs to no client."""
        if round == self.rounds or self._algorithm.pooled:
            return np.empty(0, np.int64)
        return np.setdiff1d(self._schedule.evaluated(round), cohort)

    def _vectors(self) -> int:
        """How many vectors as long as the shared parameters an actor sums up, about: for several means as many."""
        return sum(4 if up.groups else 1 for up in self._algorithm.uploads.values() if up.weighting != "each")

    def _run_tasks(self, round: int, tasks: list[Task]) -> Generator[Progress | RoundRecord, None, Completed]:
        def place(task: Task, node: int) -> Task:
            trains = isinstance(task, (Train, AdaptNewClients))
            if task.reads_states and (trains or self._algorithm.told_in_evaluation):
                # Made here, so that only those of tasks under way are in memory.
                task = replace(task, messages=server.rows_for(task.round, task.clients))
            # Fresh addresses for every attempt: one that was lost may have written to its own, and may still do so.
            if isinstance(task, Train) and not isinstance(task, Prepare):
                return replace(task, write=self.states.index.allocate(len(task.clients), node))
            return task

        server = self._server
        vectors = self._vectors() + any(isinstance(task, Train) and task.sensitivity for task in tasks)
        sum_bytes = 8 * self._layout.num_shared * vectors
        each = any(upload.weighting == "each" for upload in self._algorithm.uploads.values())
        if each:  # travel with it, and are no more than that
            sum_bytes += int(self.config.resources.server_memory * 2**30)
        dispatch = Dispatch(self._pool, round, tasks, server.version, server.broadcast, place, sum_bytes, each).run()
        while True:
            try:
                progress = next(dispatch)
            except StopIteration as end:
                completed: Completed = end.value
                return completed
            yield progress
            yield from self._pending.completed()  # at the first progress: the actors have work

    # The run as a whole.

    def _restore(self, checkpoint: Checkpoint) -> None:
        manifest = checkpoint.manifest
        self.next_round = manifest.round
        self._begun = self.next_round
        self._prepared = self._prepared or self.next_round > 0
        if manifest.ends_early(self.config.rounds):
            assert manifest.ends_after is not None
            self._schedule.rounds = manifest.ends_after
        self._server.restore(checkpoint.shared, checkpoint.server_state, checkpoint.rows())
        self.states.restore(checkpoint)
        self._pending.restore(checkpoint.records, manifest.open)

    @property
    def rounds(self) -> int:
        """How many rounds the run has: as many as configured, unless ``end_after`` was called."""
        return self._schedule.rounds

    def end_after(self, rounds: int) -> None:
        """End the run after so many rounds, or after the next one that begins if that is later.

        The last round is evaluated as that of a run which was configured with as many.
        """
        self._schedule.rounds = min(self.rounds, max(rounds, self._begun + 1))

    @property
    def records(self) -> Records:
        """Of the rounds that are complete."""
        return self._pending.records

    def snapshot(self) -> Snapshot:
        """The run as it is between two rounds; ``states.index.hold`` keeps its states where they are."""
        self._pending.measure()
        records, index, rows = self.records, self.states.index, self._server.rows.index
        return Snapshot(
            self.next_round,
            self._server.shared.numpy(),
            {name: tensor.numpy() for name, tensor in self._server.state.items()},
            Records(list(records.rounds), records.accuracy, dict(records.final), dict(records.new)),
            self._pending.entry(),
            index.addresses.copy(),
            index.versions.copy(),
            len(records.accuracy),
            self.rounds if self.rounds < self.config.rounds else None,
            (rows.addresses.copy(), rows.versions.copy()),
        )

    @property
    def shared(self) -> Tensor:
        """(S,): the shared parameters after the rounds so far."""
        return self._server.shared

    def sent(self) -> Tensors:
        """What the server would send now, by name."""
        return self._server.sent()

    def messages(self, clients: Ints) -> Tensors:
        """What it would send to each of clients (K,) beside it, rows (K, m) by name."""
        return self._server.messages(self.next_round, clients)

    @property
    def server_rows(self) -> ServerRows:
        """What the server keeps of each client."""
        return self._server.rows

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the shared parameters, of every client's state in id order, and of all metrics that are results.

        What the server keeps counts, too: its state with the shared parameters, its rows with the clients' states.
        """
        shared, personal = hashlib.sha256(self.shared.numpy().tobytes()), self.states.checksum()
        for name in sorted(self._server.state):
            shared.update(self._server.state[name].numpy().tobytes())
        self._server.rows.add_to(personal)
        return {
            "shared": shared.hexdigest(),
            "personal": personal.hexdigest(),
            "metrics": self.records.checksum(),
        }
