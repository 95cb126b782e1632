"""Whether a GPU computes what a CPU computes, to stated tolerances."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysim.algorithms import ALGORITHMS
from raysim.bench.gpu.bench import SMALL, TINY, Bench, made_up, made_up_config
from raysim.bench.one_process import OneProcess
from raysim.functional.batch import Batch
from raysim.functional.functional_model import FunctionalModel
from raysim.models.build import build_model
from raysim.training.engine import layout_of

TOLERANCE = 1e-4  # of the norm, for one gradient in float32
ROUNDS_TOLERANCE = 1e-2  # of the norm of what changed, for three rounds of training
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViT": ({}, {"name": "fedavg"}),
    "ViT, average pooling": ({"global_pool": "avg"}, {"name": "fedavg"}),
    "ViT, norms of queries and keys": ({"qk_norm": True}, {"name": "fedavg"}),
    "ViT with prefix": ({}, {"name": "fedperfix", "mid_dim": 8}),
    "ViT with adapter": ({}, {"name": "fedperfix", "mid_dim": 8, "plugin": "adapter"}),
    "ViT with LoRA": ({}, {"name": "fedperfix", "mid_dim": 8, "plugin": "lora"}),
}
# Methods that would draw noise on the device, or need other keys on this task.
KEYS: dict[str, dict[str, Any]] = {
    "fedcp": {"gumbel": False},
    "feddbe": {"kappa": 1.0, "momentum": 0.5},
    "fedperfix": {"mid_dim": 8},
}


def correctness(bench: Bench) -> None:
    """Logits and gradients of one client and of four, on both paths through the model.

    Raises:
        AssertionError: one is further away than the tolerance.
    """
    wrong = []
    for label, (arguments, algorithm) in MODELS.items():
        shape = TINY if bench.tiny else SMALL
        kwargs: Any = shape["kwargs"]
        model = {**shape, "kwargs": {**kwargs, **arguments}}
        for second_derivatives in (False, True):
            cpu, device = (_functional(d, model, algorithm, second_derivatives) for d in ("cpu", bench.device.type))
            for K in (1, 4):
                expected, got = _outputs(cpu, "cpu", K), _outputs(device, bench.device.type, K)
                apart = {name: _apart(got[name], expected[name]) for name in expected}
                passed = all(value <= TOLERANCE for value in apart.values())  # not so if it is NaN
                path = "autograd" if second_derivatives else "written out"
                bench.emit(model=label, path=path, clients=K, **apart, tolerance=TOLERANCE, passed=passed)
                wrong += [] if passed else [f"{label}, {path}, {K} clients"]
    assert not wrong, f"further from the CPU than {TOLERANCE}: {'; '.join(wrong)}"


def _functional(
    device: str, model: dict[str, Any], algorithm: dict[str, Any], second_derivatives: bool
) -> tuple[FunctionalModel, Tensor]:
    config = made_up_config(device, model, 4, algorithm=algorithm)
    built = build_model(config.model, config.algorithm, 10, 3, 0).requires_grad_(False)
    layout = layout_of(built, config.algorithm)
    initial = layout.flatten(built.state_dict())
    return FunctionalModel(built.to(device), layout, second_derivatives=second_derivatives), initial


def _outputs(made: tuple[FunctionalModel, Tensor], device: str, K: int) -> dict[str, Tensor]:
    model, initial = made
    side = int(model.model.patch_embed.img_size[0])  # type: ignore[index,union-attr]
    generator = torch.Generator().manual_seed(0)
    theta = initial + 0.05 * torch.randn(K, len(initial), generator=generator)
    images, labels = torch.randn(K, 6, 3, side, side, generator=generator), torch.arange(6).expand(K, 6)
    batch = [t.to(device) for t in (theta, images, labels, torch.ones(K, 6))]
    with torch.no_grad(), model.mode(training=True, vectorised=True):
        gradient, _ = torch.func.vmap(lambda theta, *parts: model.gradient(theta, Batch(*parts)))(*batch)
        logits = torch.func.vmap(model.logits)(*batch[:2])
    return {"logits": logits.cpu(), "gradient": gradient.cpu()}


def _apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm().clamp(min=1e-12))


def methods(bench: Bench) -> None:
    """Three rounds of every method on the device and on the CPU, client batches of two.

    Raises:
        AssertionError: one is further away than the tolerance.
    """
    wrong = []
    for name in ALGORITHMS:
        if bench.time_is_up(0.95):
            raise TimeoutError(f"no time for {name} and what comes after it")
        algorithm = {"name": name, **KEYS.get(name, {})}
        runs = [_trained(device, algorithm) for device in ("cpu", bench.device.type)]
        (expected, expected_states), (shared, states) = (_changes(run) for run in runs)
        apart = {"shared": _apart(shared, expected), "states": _apart(states, expected_states)}
        passed = all(value <= ROUNDS_TOLERANCE for value in apart.values())
        bench.emit(method=name, **apart, tolerance=ROUNDS_TOLERANCE, passed=passed)
        wrong += [] if passed else [name]
    assert not wrong, f"further from the CPU than {ROUNDS_TOLERANCE}: {', '.join(wrong)}"


def _trained(device: str, algorithm: dict[str, Any]) -> OneProcess:
    run = made_up(device, TINY, 4, 12, 4, algorithm=algorithm)
    if run.algorithm.prepares:
        run.prepare()
    for round in range(3):
        if run.algorithm.pooled:
            run.round(round, [[0]], pooled=run.engine.partition.indices)
        else:
            run.round(round, [[0, 1], [2, 3]])
    return run


def _changes(run: OneProcess) -> tuple[Tensor, Tensor]:
    """What three rounds made of the shared parameters, and of the clients' states."""
    before = run.engine.layout.split(run.initial)[0]
    return run.shared - before, torch.from_numpy(run.states - run.engine.initial_state)


def digest(shared: Tensor) -> str:
    """The first 8 hex digits of the SHA-256 of a vector's bits."""
    from hashlib import sha256

    return sha256(np.ascontiguousarray(shared.cpu().numpy()).tobytes()).hexdigest()[:8]
