"""The device of a worker process: its name, deterministic kernels, memory that is kept."""

from __future__ import annotations

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def device_name(device: str) -> str:
    """The GPU model or the CPU instruction set; where it is equal, results are bit-identical."""
    return torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, since every step frees and allocates the same large tensors.

    Otherwise each comes back from the system as new pages, one fault per 4 kB; the more so with many processes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    for parameter, value in ((M_MMAP_THRESHOLD, 32 * 2**20), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
        mallopt(parameter, value)  # 32 MB is the threshold's largest value; larger blocks are mapped as before


def fill_new_tensors(fill: bool) -> None:
    """Whether tensors that nothing is written to are NaN in deterministic mode: one more kernel for every new tensor."""
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", fill)  # noqa: B010 - torch's types do not know it


def make_cuda_deterministic(tf32: bool = False) -> None:
    """Equal bits on equal GPUs; ``CUBLAS_WORKSPACE_CONFIG`` is set in the actor's environment.

    ``tf32``: matrix products of float32 numbers round these to 10 bits of mantissa.

    Raises:
        RuntimeError: this process sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("this worker sees no CUDA device; is torch built for CUDA and num_gpus_per_actor above 0?")
    torch.use_deterministic_algorithms(True)
    fill_new_tensors(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.enable_mem_efficient_sdp(False)
