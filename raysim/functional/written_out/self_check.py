"""Whether a written-out model is the function that the model itself is: tried once, before it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raysim.functional.parameters import ParameterLayout
from raysim.functional.written_out.transformer import WrittenOut

log = logging.getLogger(__name__)
TOLERANCE = 1e-5  # of the gradient's norm; float32 rounds to some 5e-7 of it
MANY = 2**25  # parameters of which one client has to do
Gradients = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def agrees(written: WrittenOut, general: Gradients, model: Any, layout: ParameterLayout) -> bool:
    """Whether gradient and loss of two clients are those of the general path; if not, one line in the log says so."""
    if next(model.parameters()).is_meta:  # shapes without numbers: nothing to compare
        return True
    K, B = (1 if layout.num_parameters > MANY else 2), 2
    generator = torch.Generator().manual_seed(0)
    initial = layout.flatten(model.state_dict())
    device = initial.device
    noise = torch.randn(K, len(initial), generator=generator).to(device)  # parameters that start at 0 must count, too
    height, width = model.patch_embed.img_size
    images = torch.randn(K, B, model.patch_embed.proj.in_channels, height, width, generator=generator).to(device)
    labels, mask = torch.zeros(K, B, dtype=torch.int64, device=device), torch.ones(K, B, device=device)
    batch = (initial + 0.02 * noise, images, labels, mask)
    try:
        with _float32():
            (ours, loss), (expected, expected_loss) = written.gradient(*batch), general(*batch)
        apart = max(_apart(ours, expected), _apart(loss, expected_loss))
        problem = "" if apart <= TOLERANCE else f"is {apart:.1g} away from that of autograd"
    except Exception as error:  # whatever a layer raises that is not what it was taken for
        problem = f"fails ({error!r:.300})"
    if problem:
        log.warning(
            "The written-out gradient of %s %s, so it is not used, and rounds take longer; timm, or a module of the model's "
            "own, may be another than it was written for",
            type(model).__name__,
            problem,
        )
    return not problem


@contextmanager
def _float32() -> Iterator[None]:
    """Without TF32, which rounds by more than the tolerance."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm().clamp(min=1e-12))
