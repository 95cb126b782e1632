"""``raysim run --dry-run``: what is known of a run before it starts, some of it from a few trial steps on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from rich.console import Console

from raysim.config.loading import dump
from raysim.config.schema import Config
from raysim.experiments.preparation import PreparedRun, data_warnings, prepare
from raysim.federation.client_batches import cut
from raysim.models.build import build_model
from raysim.training.algorithm_server import AlgorithmServer
from raysim.training.engine import ClientEngine
from raysim.training.step_memory import trial_step
from raysim.workers.cluster import usable_cpus

STEPS = 3
ACTOR_BYTES = 500e6  # of a process that has torch and timm


def dry_run(console: Console, config: Config) -> None:
    """Print the resolved configuration, what is shared, and what a round will take, for every entry of a study.

    Raises:
        ConfigError: as ``raysim run`` would.
    """
    model = config.model.model_copy(update={"pretrained": False, "weights": None})  # shapes are enough
    runs = prepare(config.model_copy(update={"model": model}))
    first = runs[0]
    for line in data_warnings(runs):
        console.print(f"warning: {line}", highlight=False)
    console.print(
        dump(config.model_copy(update={"resources": first.config.resources})), highlight=False, soft_wrap=True
    )
    entries = {run.entry: run for run in reversed(runs)}
    total = 0.0
    for entry, run in reversed(entries.items()):
        count = sum(other.entry == entry for other in runs)
        console.print(f"{entry}, {count} {'run' if count == 1 else 'runs'}", style="bold")
        console.print(run.layout.table(), highlight=False)
        estimate = Estimate.of(run)
        console.print(estimate.text(run), highlight=False)
        console.print()
        total += count * run.config.rounds * estimate.round_seconds
    console.print(
        f"{f'{len(runs)} runs one after another' if len(runs) > 1 else 'the run'}: about {_time(total)}, without start and "
        "evaluation",
        highlight=False,
    )


@dataclass(frozen=True)
class Estimate:
    """What a run takes on this machine, from a few trial steps of its largest clients."""

    actors: int
    round_seconds: float
    """Seconds of training per round, if all actors are as fast as this process."""
    actor_bytes: float
    """The peak memory of an actor."""

    @classmethod
    def of(cls, run: PreparedRun) -> Estimate:
        """Try a few steps of the largest client batch, in this process."""
        torch.set_num_threads(1)
        data, config, sizes = run.dataset, run.config, run.partition.num_train
        size = config.resources.clients_per_batch
        assert isinstance(size, int)
        model = build_model(
            config.model.model_copy(update={"pretrained": False, "weights": None}),
            *(config.algorithm, data.num_classes, data.images.shape[3], config.seed),
        )
        theta = torch.from_numpy(run.initial.copy())
        engine = ClientEngine(config, model, theta, data.images, data.labels, run.partition, "cpu")
        largest = np.argsort(-sizes, kind="stable")[: min(size, config.cohort_size)]
        process, seconds, most = psutil.Process(), [], 0
        before = process.memory_info().rss
        for _ in range(STEPS):
            start = time.perf_counter()
            trial_step(engine, largest)
            seconds.append(time.perf_counter() - start)
            most = max(most, process.memory_info().rss - before)
        samples = min(config.train.batch_size * config.algorithm.batches_per_step, int(sizes[largest].max()))
        tested = int(run.partition.num_held_out[largest].sum()) / 3  # an evaluation costs a third of a step of training
        per_sample = min(seconds) / (len(largest) * samples + tested)
        epochs = len(config.algorithm.epochs(config.train.local_epochs))
        typical = np.argsort(sizes, kind="stable")[:: max(1, len(sizes) // config.cohort_size)][: config.cohort_size]
        batches = cut(typical, sizes[typical], size)
        padded = epochs * sum(len(batch) * int(sizes[batch].max()) for batch in batches)
        actors = (
            min(usable_cpus(), len(batches)) if config.resources.num_actors == "auto" else config.resources.num_actors
        )
        return cls(actors, per_sample * padded / actors, ACTOR_BYTES + most)

    def text(self, run: PreparedRun) -> str:
        config, layout = run.config, run.layout
        state = 4 * sum(
            vector.numel()
            for vector in config.algorithm.client_state(torch.zeros(layout.num_parameters), layout).values()
        )
        trained = min(config.data.num_clients, config.rounds * config.cohort_size)
        samples = run.partition.num_train[: config.data.num_clients]
        server = AlgorithmServer(config, layout, torch.from_numpy(run.initial), samples)
        down = [*server.sent().values(), *(m[0] for m in server.messages(0, np.zeros(1, np.int64)).values())]
        sent = 4 * sum(tensor.numel() for tensor in down) * config.cohort_size
        kept = "mapped from disk on every node" if run.dataset.cache else "of images once per node"
        actors = f"{self.actors} {'actor' if self.actors == 1 else 'actors'}"
        return "\n".join(
            [
                f"a round: {sent / 1e6:,.2f} MB down and about as many up, over {config.cohort_size} clients",
                f"a round's training: about {_time(self.round_seconds)} with {actors} "
                "on CPU cores like this; "
                f"{config.rounds} rounds: {_time(config.rounds * self.round_seconds)}",
                f"memory: about {self.actor_bytes / 1e9:.1f} GB per actor, "
                f"{run.dataset.images.nbytes / 1e6:,.0f} MB {kept}",
                f"disk: {state / 1e3:,.1f} kB per client that has trained, {state * trained / 1e9:,.2f} GB for {trained:,}",
            ]
        )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
