"""NVML with GPUs that are not here: the functions that the probe calls, by what each GPU is said to be."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

V100 = {
    "nvmlDeviceGetName": b"Tesla V100-SXM2-32GB",
    "nvmlDeviceGetCudaComputeCapability": (7, 0),
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=32 << 30, used=1 << 28),
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlDeviceGetTotalEccErrors": 0,
    "nvmlDeviceGetRetiredPages": {0: [1, 2], 1: [3]},
    "nvmlDeviceGetRetiredPagesPendingStatus": 0,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1,  # idle
    "nvmlDeviceGetApplicationsClock": 1290,
    "nvmlDeviceGetMaxClockInfo": 1530,
    "nvmlDeviceGetEnforcedPowerLimit": 300_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 300_000,
    "nvmlDeviceGetTemperature": 35,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetNvLinkState": dict.fromkeys(range(6), 1),
    "nvmlDeviceGetComputeMode": 0,
    "nvmlDeviceGetComputeRunningProcesses": [],
}  # neither remapped rows nor MIG
QUESTIONS = (*V100, "nvmlDeviceGetRemappedRows", "nvmlDeviceGetMigMode", "nvmlDeviceGetComputeRunningProcesses_v2")


def install(monkeypatch: pytest.MonkeyPatch, *gpus: dict[str, Any], driver: str = "535.1") -> None:
    """Let pynvml answer for these GPUs; what a GPU does not say, NVML does not support."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(gpus))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: gpus[index])
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: driver)
    for name in QUESTIONS:

        def answer(gpu: dict[str, Any], *arguments: Any, name: str = name) -> Any:
            value = gpu.get(name)
            value = value.get(arguments[0]) if isinstance(value, dict) else value
            if value is None:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value

        monkeypatch.setattr(pynvml, name, answer)
