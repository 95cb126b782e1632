import pytest
import torch

from raysim.training.device_errors import is_broken_device, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA driver error: out of memory"),
    ],
)
def test_no_room(error):
    assert is_out_of_memory(error)
    assert not is_broken_device(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
)
def test_a_process_that_can_not_use_its_gpu_any_more(error):
    assert is_broken_device(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("CUDA error: said by a user"),
        RuntimeError("shapes do not match"),
        RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm`"),
    ],
)
def test_other_errors(error):
    assert not is_broken_device(error)
    assert not is_out_of_memory(error)
