"""How fast a GPU trains, how much memory that takes, and how well it is used."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from raysim.bench.gpu.bench import SMALL, TINY, VIT_S, Bench, made_up, made_up_config
from raysim.bench.one_process import OneProcess
from raysim.models.build import build_model
from raysim.training.device_errors import is_out_of_memory
from raysim.training.step_memory import choose, peak_bytes, trial_step
from raysim.workers.device import make_cuda_deterministic

STEPS = 4  # local steps of a measured call; what a call costs besides is shared among them
CIFAR100 = {"clients": 64, "cohort": 8, "train": 703, "test": 234, "epochs": 10, "rounds": 50, "runs": 33}


def large(bench: Bench) -> None:
    """ViT-S/16 at 224 pixels, batches of 64: a step of one client, beside a loop in plain torch."""
    model, batch = (TINY, 4) if bench.tiny else (VIT_S, 64)
    _beside_plain(bench, model, batch, [1, 2, 4], ["float32", "tf32", "bfloat16"], compiled=not bench.tiny)


def small(bench: Bench) -> None:
    """A ViT for which launching operations takes longer than computing them: many clients together."""
    model, sizes = (TINY, [1, 4]) if bench.tiny else (SMALL, [1, 8, 64, 256])
    _beside_plain(bench, model, 8, sizes, ["float32"], compiled=False)


def _beside_plain(
    bench: Bench, model: dict[str, Any], batch: int, sizes: list[int], precisions: list[str], compiled: bool
) -> None:
    kinds = [precision for precision in precisions if bench.is_gpu or precision != "tf32"]
    for precision in kinds:
        plain = 1000 * bench.timed(partial(_plain_steps, bench, model, batch, precision)) / STEPS
        bench.emit(what="plain torch", precision=precision, clients=1, ms_per_client_and_step=plain, ratio=1.0)
        for size in sizes:
            if bench.time_is_up():
                raise TimeoutError(f"no time for {precision} with {size} clients")
            try:
                took = _ours(bench, model, batch, size, {"precision": precision})
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                bench.emit(what="raysim", precision=precision, clients=size, ms_per_client_and_step="no room", ratio="")
                break
            ratio = took / plain
            bench.emit(what="raysim", precision=precision, clients=size, ms_per_client_and_step=took, ratio=ratio)
    if compiled:
        took = _ours(bench, model, batch, 1, {"precision": "bfloat16", "compile": True})
        row = {"what": "raysim, compiled", "precision": "bfloat16", "clients": 1}
        bench.emit(**row, ms_per_client_and_step=took, ratio=took / plain)


def _ours(bench: Bench, model: dict[str, Any], batch: int, size: int, resources: dict[str, Any]) -> float:
    """Milliseconds per client and local step, the exact sums included."""
    if bench.is_gpu:
        make_cuda_deterministic(resources.get("precision") == "tf32")
    run = made_up(bench.device.type, model, size, STEPS * batch, 2, train={"batch_size": batch}, resources=resources)
    return 1000 * bench.timed(lambda: run.train(0, np.arange(size), evaluate=False)) / (STEPS * size)


def _plain_steps(bench: Bench, model: dict[str, Any], batch: int, precision: str) -> None:
    """``STEPS`` local steps in plain torch, on images that lie on the device."""
    if precision not in _PLAIN:
        config = made_up_config(bench.device.type, model, 1)
        net = build_model(config.model, config.algorithm, 10, 3, config.seed).to(bench.device)
        side = model["image_size"]
        images = torch.randn(batch, 3, side, side, device=bench.device)
        labels = torch.zeros(batch, dtype=torch.int64, device=bench.device)
        _PLAIN.clear()
        _PLAIN[precision] = net, torch.optim.SGD(net.parameters(), 0.01), images, labels
    net, optimizer, images, labels = _PLAIN[precision]
    if bench.is_gpu:
        make_cuda_deterministic(precision == "tf32")
    half = torch.autocast(bench.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with half:
            logits = net(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()


_PLAIN: dict[str, Any] = {}  # the model of the precision that is measured


def memory(bench: Bench) -> None:
    """What ``auto`` chooses, how far that is from the best, what it takes, and whether training goes on after running out."""
    for label, model, batch, most in _models(bench):
        run = made_up(bench.device.type, model, 8 * most, 2 * batch, 2, train={"batch_size": batch})
        total = torch.cuda.get_device_properties(0).total_memory if bench.is_gpu else 80 * 2**30
        peaks: dict[int, int | None] = {}
        chosen = choose(partial(_peak, bench, run, peaks), total, most, 1).clients_per_batch
        times, used = {}, 0
        for size in sorted({max(1, chosen // 4), max(1, chosen // 2), chosen, min(most, 2 * chosen)}):
            bench.reset()
            try:
                seconds = bench.timed(partial(run.train, 0, np.arange(size), evaluate=False), 1.0)
            except RuntimeError as error:
                if not is_out_of_memory(error) or size <= chosen:
                    raise
                break
            times[size] = 1000 * seconds / size
            used = bench.reserved() if size == chosen else used
        bench.emit(
            model=label,
            chosen=chosen,
            ms_per_client=times[chosen],
            best=min(times, key=times.__getitem__),
            best_ms_per_client=min(times.values()),
            predicted_gb=(peaks[chosen] or 0) / 1e9,
            used_gb=used / 1e9,
        )
    if bench.is_gpu:
        _runs_out(bench)


def _models(bench: Bench) -> list[tuple[str, dict[str, Any], int, int]]:
    """Label, model, batch size and most clients together."""
    return (
        [("tiny ViT", TINY, 4, 4)] if bench.tiny else [("small ViT", SMALL, 8, 256), ("ViT-S/16 at 224", VIT_S, 64, 8)]
    )


def _peak(bench: Bench, run: OneProcess, peaks: dict[int, int | None], clients: int) -> int | None:
    if bench.is_gpu:
        peaks[clients] = peak_bytes(run.engine, clients)
    else:  # a CPU has no such measure
        trial_step(run.engine, np.arange(clients))
        peaks[clients] = clients
    return peaks[clients]


def _runs_out(bench: Bench) -> None:
    """More clients than fit, then few again, in the same process."""
    run, size = made_up(bench.device.type, VIT_S, 512, 64, 2, train={"batch_size": 64}), 8
    while size < 512 and peak_bytes(run.engine, size) is not None:
        size *= 2
    ran_out = size < 512
    bench.reset()
    trained = run.train(0, np.arange(1))
    bench.emit(model="ViT-S/16 at 224", no_room_for=size if ran_out else "", then_trains=bool(trained.accepted.all()))


def launches(bench: Bench) -> None:
    """Kernels and waits of a local step, and the share of the time in which the GPU computes."""
    sizes = (
        [("tiny ViT", TINY, 4, 4)] if bench.tiny else [("small ViT", SMALL, 8, 64), ("ViT-S/16 at 224", VIT_S, 64, 1)]
    )
    for label, model, batch, size in sizes:
        counted = {}
        for steps in (2, 6):
            run = made_up(bench.device.type, model, size, steps * batch, 2, train={"batch_size": batch})
            ids = np.arange(size)
            run.train(0, ids, evaluate=False)
            bench.synchronize()
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if bench.is_gpu else []
            begin = time.perf_counter()
            with torch.profiler.profile(activities=activities) as profile:
                run.train(0, ids, evaluate=False)
                bench.synchronize()
            counted[steps] = _counts(profile, time.perf_counter() - begin)
        row = {
            name: (counted[6][name] - counted[2][name]) / 4
            for name in ("operations", "launches", "waits", "copies_back")
        }
        bench.emit(model=label, clients=size, **row, busy_share=counted[6]["device_seconds"] / counted[6]["seconds"])


def _counts(profile: Any, seconds: float) -> dict[str, float]:
    """Of a profile: operations of torch, kernels, calls that wait, copies to the host, and seconds of the device."""
    found = {
        "operations": 0.0,
        "launches": 0.0,
        "waits": 0.0,
        "copies_back": 0.0,
        "device_seconds": 0.0,
        "seconds": seconds,
    }
    for event in profile.key_averages():
        name = event.key
        found["operations"] += event.count if name.startswith("aten::") else 0
        found["launches"] += event.count if "LaunchKernel" in name else 0
        found["waits"] += event.count if "Synchronize" in name else 0
        found["copies_back"] += event.count if "DtoH" in name else 0
        on_device = not str(event.device_type).endswith("CPU") and not event.is_user_annotation
        found["device_seconds"] += event.self_device_time_total / 1e6 if on_device else 0.0  # others contain theirs
    return found


def paper(bench: Bench) -> None:
    """The paper's CIFAR-100 setting on made-up images: as many clients as fit into the time, hence days for the table."""
    setting = {**CIFAR100, "train": 8, "test": 4, "epochs": 1} if bench.tiny else CIFAR100
    algorithm = {"name": "fedperfix", "mid_dim": 8 if bench.tiny else 256, "scale": 1.5}
    model, batch = (TINY, 4) if bench.tiny else (VIT_S, 64)
    run = made_up(
        bench.device.type,
        model,
        setting["cohort"],
        setting["train"],
        setting["test"],
        classes=100,
        algorithm=algorithm,
        train={"batch_size": batch, "local_epochs": setting["epochs"]},
    )
    run.train(0, np.arange(1), local_epochs=1)
    trained, begin = 0, time.perf_counter()
    while trained == 0 or (not bench.time_is_up(0.7) and trained < 4 * setting["cohort"]):
        run.train(trained // setting["cohort"], np.array([trained % setting["cohort"]]))
        trained += 1
    per_client = (time.perf_counter() - begin) / trained
    sent = run.broadcast
    begin = time.perf_counter()
    run.engine.evaluate(0, np.arange(1), sent, run.states[:1])
    per_evaluation = time.perf_counter() - begin
    per_round = setting["cohort"] * per_client + setting["clients"] * per_evaluation
    days = per_round * setting["rounds"] * setting["runs"] / 86400
    bench.emit(
        clients_trained=trained,
        seconds_per_client=per_client,
        seconds_per_evaluation=per_evaluation,
        seconds_per_round_one_actor=per_round,
        days_for_the_table_on_1_gpu=days,
        on_8_gpus=days / 8,
    )
