"""Fault injection: runs that are killed, hung, cut off and starved must end with the bits of one that is not.

    python tests/support/chaos.py --minutes 20 --seed 7

Every run goes on until it is finished. Then its checksums are compared with those of an undisturbed run of the same
configuration, and its metrics in MLflow must have every round once. The moments and the kinds of faults follow from the
seed; what they hit depends on how fast the machine is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from chaos_episode import CONFIGURATIONS, RUN_SECONDS, Episode
from chaos_faults import CLUSTER_FAULTS, LOCAL_FAULTS, OFTEN, TROUBLES, disk_full_at_end
from chaos_world import World

ROUNDS = 20
FULL_AT_END = 0.4  # of the runs on the small disk


@dataclass
class Tally:
    """What was done and what came of it."""

    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    finished: int = 0
    mismatches: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> str:
        return json.dumps({**self.__dict__, "faults": dict(sorted(self.faults.items()))}, indent=1)


class Harness:
    """Takes runs through faults.

    Args:
        seed: of kinds and moments.
        say: told what happens.
        rounds: of each run.
    """

    def __init__(self, seed: int, say: Callable[[str], None] = print, rounds: int = ROUNDS) -> None:
        self.random, self.say, self.tally, self.rounds = random.Random(seed), say, Tally(), rounds
        self.world = World()
        self.expected: dict[str, dict[str, str]] = {}

    def run_until(self, seconds: float, faults_per_run: int, kinds: list[str] | None = None) -> Tally:
        """Runs until the time is over; the last one is taken to its end."""
        begun = time.monotonic()
        for i in range(10**6):
            if time.monotonic() - begun > seconds:
                break
            name = [*CONFIGURATIONS][i % len(CONFIGURATIONS)]
            self.undisturbed(name)
            self.episode(name, local=i % 4 == 3, faults=faults_per_run, kinds=kinds)
            self.tally.seconds = time.monotonic() - begun
            self.say(
                f"[{self.tally.seconds:6.0f} s] {self.tally.runs} runs, {sum(self.tally.faults.values())} faults, "
                f"{len(self.tally.mismatches)} mismatches"
            )
        return self.tally

    def undisturbed(self, name: str) -> None:
        """What a configuration comes to when nothing happens."""
        if name in self.expected:
            return
        episode = Episode(self.world, name, True, self.rounds, pause=0.0)
        episode.start("run", "run.yaml")
        assert episode.finish() == 0, episode.text()
        self.expected[name], problems = self.outcome(episode)
        assert not problems, problems

    def episode(self, name: str, local: bool, faults: int, kinds: list[str] | None, order: Sequence[str] = ()) -> None:
        """A run with at most so many faults, of these kinds; or with one of each kind in ``order``."""
        episode = Episode(self.world, name, local, self.rounds)
        self.say(f"{name}, {'a local cluster' if local else 'three nodes'}")
        if self.world.nodes.other is None:
            self.world.nodes.add()
        episode.start("run", "run.yaml")
        for i in range(faults):
            if not self.progressed(episode):
                break
            if order:
                self.fault(episode, [order[i]])
                continue
            for _ in range(self.random.choice([1, 2, 3])):  # those that hit who is just recovering are the hard ones
                time.sleep(self.random.uniform(0.0, 1.5))
                self.fault(episode, kinds)
        if kinds is None and not order and self.random.random() < FULL_AT_END:
            self.count("disk_full_at_end", disk_full_at_end(self.world, episode, self.random), episode)
        code = episode.finish()
        self.world.mlflow.settle()
        self.tally.runs += 1
        checksums, problems = self.outcome(episode)
        if code != 0:
            problems.append(f"exit code {code}")
        if checksums != self.expected[name]:
            problems.append(f"checksums {checksums} instead of {self.expected[name]}")
        if problems:
            self.tally.mismatches.append(f"{name}: {'; '.join(problems)}")
            self.say(f"MISMATCH {problems}\n{episode.text()[-6000:]}")
        else:
            self.tally.finished += 1
        self.tally.faults.update(episode.troubles())
        self.clean(episode)

    def fault(self, episode: Episode, kinds: list[str] | None) -> None:
        known = LOCAL_FAULTS if episode.local else CLUSTER_FAULTS
        possible = [kind for kind in known if kinds is None or kind in kinds] or [*known]
        kind = self.random.choice([k for k in possible for _ in range(2 if k in OFTEN else 1)])
        self.count(kind, known[kind](self.world, episode, self.random), episode)

    def count(self, kind: str, hit: bool, episode: Episode) -> None:
        """Trouble counts once an actor has run into it."""
        if hit:
            self.tally.faults[kind] += kind not in TROUBLES
            self.say(f"  after round {episode.rounds_done()}: {kind}")

    def progressed(self, episode: Episode) -> bool:
        """Wait until the run has done another round or two, so that a fault hits it and not its start; False at its end."""
        before, until = episode.rounds_done(), time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            if episode.ended() or episode.rounds_done() >= self.rounds:
                return False
            if episode.rounds_done() > before:
                return True
            time.sleep(0.05)
        return False

    def outcome(self, episode: Episode) -> tuple[dict[str, str], list[str]]:
        """The checksums that MLflow has, and what is wrong with the metrics there."""
        from mlflow.tracking import MlflowClient

        client = MlflowClient(self.world.mlflow.uri)
        experiment = client.get_experiment_by_name(episode.experiment)
        if experiment is None:
            return {}, ["no experiment in MLflow"]
        runs = client.search_runs([experiment.experiment_id])
        if len(runs) != 1:
            return {}, [f"{len(runs)} runs in MLflow"]
        run, problems = runs[0], []
        if run.info.status != "FINISHED":
            problems.append(f"it is {run.info.status}")
        for metric in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, metric)]
            of_clients = metric.startswith(("personalized/", "aggregated/", "difference/"))
            every = range(1, self.rounds, 2) if of_clients and "head" in episode.name else range(self.rounds)
            if sorted(steps) != list(every):
                problems.append(f"{metric} has steps {sorted(steps)}")
        return {k: v for k, v in run.data.tags.items() if k.startswith("checksum.")}, problems

    def clean(self, episode: Episode) -> None:
        home = episode.home()
        if home is not None and episode.on_small_disk:
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def harness(seed: int, say: Callable[[str], None] = print, rounds: int = ROUNDS) -> Iterator[Harness]:
    made = Harness(seed, say, rounds)
    try:
        yield made
    finally:
        made.world.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=14, help="in a run, at most")
    parser.add_argument("--kinds", nargs="*", help=f"of {', '.join(sorted({*CLUSTER_FAULTS, *LOCAL_FAULTS}))}")
    given = parser.parse_args()
    with harness(given.seed, lambda line: print(line, flush=True)) as made:
        tally = made.run_until(60 * given.minutes, given.faults, given.kinds)
    print(tally.as_json())
    sys.exit(bool(tally.mismatches))


if __name__ == "__main__":
    main()
