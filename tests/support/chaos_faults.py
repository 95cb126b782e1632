"""The faults, by name; each returns whether it found something to hit."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from raysim.storage.checkpoint import manifest_name, rounds_in
from raysim.storage.folder import Folder

from chaos_episode import Episode
from chaos_world import World

Fault = Callable[[World, Episode, random.Random], bool]


def _send(world: World, name: str, number: int, rng: random.Random) -> bool:
    processes = world.nodes.processes(name)
    if not processes:
        return False
    with contextlib.suppress(psutil.Error):
        rng.choice(sorted(processes, key=lambda p: p.pid)).send_signal(number)
        return True
    return False


def actor_killed(world: World, episode: Episode, rng: random.Random) -> bool:
    return _send(world, "ClientActor", signal.SIGKILL, rng)


def actor_hangs(world: World, episode: Episode, rng: random.Random) -> bool:
    return _send(world, "ClientActor", signal.SIGSTOP, rng)


def driver_killed(world: World, episode: Episode, rng: random.Random) -> bool:
    return _send(world, "Driver", signal.SIGKILL, rng)


def node_lost(world: World, episode: Episode, rng: random.Random) -> bool:
    if world.nodes.other is None:
        return False
    world.nodes.lose()
    return True


def node_joins(world: World, episode: Episode, rng: random.Random) -> bool:
    if world.nodes.other is not None:
        return False
    world.nodes.add()
    return True


def command_killed(world: World, episode: Episode, rng: random.Random) -> bool:
    episode.killed_group()
    if episode.local:
        time.sleep(rng.uniform(0.0, 1.0))
    episode.go_on()
    return True


def mlflow_down(world: World, episode: Episode, rng: random.Random) -> bool:
    if world.mlflow.away():
        return False
    world.mlflow.kill()
    world.mlflow.come_back(rng.uniform(2.0, 15.0))
    return True


def disk_full(world: World, episode: Episode, rng: random.Random) -> bool:
    if not episode.on_small_disk:
        return False
    with world.full_disk():
        time.sleep(rng.uniform(1.0, 4.0))
    return True


def disk_full_at_end(world: World, episode: Episode, rng: random.Random) -> bool:
    """From before the last round is complete: the last lines of the journal and the last checkpoint have to wait."""
    if not episode.on_small_disk:
        return False
    until = time.monotonic() + 120
    while episode.rounds_done() < episode.rounds - 1:
        if episode.ended() or time.monotonic() > until:
            return False
        time.sleep(0.02)
    with world.full_disk():
        time.sleep(rng.uniform(5.0, 25.0))
    return True


def checkpoint_damaged(world: World, episode: Episode, rng: random.Random) -> bool:
    """Flip a bit of the newest one and kill the driver, which must notice and take the one before."""
    home = episode.home()
    places = [p for p in Path(home).iterdir() if p.is_dir() and p.name != "journal"] if home else []
    rounds = [(place, round) for place in places for round in rounds_in(Folder(str(place)))]
    if not rounds:
        return False
    place, round = max(rounds, key=lambda row: row[1])
    with contextlib.suppress(OSError, ValueError, KeyError):
        body = json.loads((place / manifest_name(round)).read_text())["manifest"]
        path = place / rng.choice([body["shared"], *body["states"], *body["rounds"]])["name"]
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return driver_killed(world, episode, rng)
    return False


# Trouble that actors run into (``troubled.py``). An actor's limit for a task or a sum is 6 seconds here.


def evaluation_hangs(world: World, episode: Episode, rng: random.Random) -> bool:
    return episode.put_trouble("evaluation_hangs", 1000.0)


def partial_sum_slow(world: World, episode: Episode, rng: random.Random) -> bool:
    return episode.put_trouble("partial_sum_slow", rng.choice([1.0, 3.0, 9.0]))


def device_broken(world: World, episode: Episode, rng: random.Random) -> bool:
    return episode.put_trouble("device_broken")


TROUBLES: dict[str, Fault] = {f.__name__: f for f in (evaluation_hangs, partial_sum_slow, device_broken)}
CLUSTER_FAULTS: dict[str, Fault] = {
    **{f.__name__: f for f in (actor_killed, actor_hangs, driver_killed, node_lost, node_joins)},
    **{f.__name__: f for f in (command_killed, mlflow_down, disk_full, checkpoint_damaged)},
    **TROUBLES,
}
LOCAL_FAULTS: dict[str, Fault] = {"machine_killed": command_killed, "mlflow_down": mlflow_down, **TROUBLES}
OFTEN = {"actor_killed", "node_joins", "machine_killed"}  # twice as often as others
