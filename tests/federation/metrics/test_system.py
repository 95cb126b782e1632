"""What a node does: names and units; GPUs as NVML tells of them, or does not."""

from types import SimpleNamespace

import pynvml
import pytest

from raysim.federation.metrics.system import NodeMetrics

NODE = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
}


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs: one that tells everything, and a part of one, which does not know its utilisation."""

    def utilisation(gpu):
        if gpu:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=37)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda i: i)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilisation)
    memory = SimpleNamespace(used=2_000_000_000, total=8_000_000_000)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda gpu: memory)


def test_a_gpu_that_does_not_tell_everything_is_no_reason_to_stop(gpus):
    metrics = NodeMetrics().read()
    assert {key: value for key, value in metrics.items() if key not in NODE} == {
        "system/gpu_0_utilization_percentage": 37,
        "system/gpu_0_memory_usage_megabytes": 2000,
        "system/gpu_0_memory_usage_percentage": 25,
        "system/gpu_1_memory_usage_megabytes": 2000,
        "system/gpu_1_memory_usage_percentage": 25,
    }


def test_a_machine_without_the_driver(monkeypatch):
    def fails():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    metrics = NodeMetrics().read()
    assert metrics.keys() == NODE
    assert 0 <= metrics["system/system_memory_usage_percentage"] <= 100
