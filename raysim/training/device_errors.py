"""What an error of a GPU means for its actor: too little memory, or a process that can't use its GPU any more.

torch raises ``OutOfMemoryError`` only for its own allocations; drivers and libraries tell of others in a message.
"""

from __future__ import annotations

import torch

NO_MEMORY = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)
# After an error of a kernel, every later call of the process fails with the same error.
BROKEN = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
    "device-side assert",
    "uncorrectable ECC error",
)
# A program asked a library for what it can't do; the GPU is as it was.
NOT_BROKEN = (
    "CUBLAS_STATUS_INVALID_VALUE",
    "CUBLAS_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_BAD_PARAM",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no room for what was asked; the actor can go on with less."""
    return isinstance(error, torch.OutOfMemoryError) or _says(error, NO_MEMORY)


def is_broken_device(error: BaseException) -> bool:
    """Whether the process can't use its GPU any more, so that another has to take its place."""
    if is_out_of_memory(error) or _says(error, NOT_BROKEN):
        return False
    return isinstance(error, RuntimeError) and _says(error, BROKEN)


def _says(error: BaseException, phrases: tuple[str, ...]) -> bool:
    return any(phrase in str(error) for phrase in phrases)
