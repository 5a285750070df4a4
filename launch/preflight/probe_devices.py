"""`python -m deltalm_ds.launch.preflight.probe_devices nvml|torch`: a host's GPUs, by driver or PyTorch."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pynvml

# Reasons for low clocks that neither load nor settings explain, by NVML's bits.
SLOWED = {
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "too hot, by the driver",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "too hot, by the hardware",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}
COMPUTE_MODES = {
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive",
}
MAX_NVLINKS = 18  # of any GPU so far
MAX_XIDS = 20


def nvml() -> dict[str, Any]:
    """The driver and each GPU, whatever CUDA_VISIBLE_DEVICES says: `facts.Nvml`."""
    pynvml.nvmlInit()
    gpus = [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return {"driver": _text(pynvml.nvmlSystemGetDriverVersion()), "gpus": gpus, "xids": xids() if gpus else []}


def _gpu(index: int) -> dict[str, Any]:
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)

    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        """None where this GPU or this driver does not know."""
        with suppress(pynvml.NVMLError):
            return question(gpu, *arguments)
        return None

    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    retired = [ask(pynvml.nvmlDeviceGetRetiredPages, cause) for cause in range(pynvml.NVML_PAGE_RETIREMENT_CAUSE_COUNT)]
    remapped = ask(pynvml.nvmlDeviceGetRemappedRows)  # corrected, uncorrected, pending, failed; from A100 on
    ecc, mig = ask(pynvml.nvmlDeviceGetEccMode), ask(pynvml.nvmlDeviceGetMigMode)
    errors = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    power, usual_power = (
        ask(question)
        for question in (pynvml.nvmlDeviceGetEnforcedPowerLimit, pynvml.nvmlDeviceGetPowerManagementDefaultLimit)
    )
    reasons = ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    clock = ask(pynvml.nvmlDeviceGetApplicationsClock, pynvml.NVML_CLOCK_SM)
    links = [ask(pynvml.nvmlDeviceGetNvLinkState, link) for link in range(MAX_NVLINKS)]
    return {
        "index": index,
        "name": _text(pynvml.nvmlDeviceGetName(gpu)),
        "capability": ask(pynvml.nvmlDeviceGetCudaComputeCapability),
        "memory_bytes": memory.total,
        "used_bytes": memory.used,
        "ecc": None if ecc is None else bool(ecc[0]),
        "uncorrected_errors": ask(pynvml.nvmlDeviceGetTotalEccErrors, *errors),
        "retired_pages": None if retired.count(None) else sum(map(len, retired)),
        "remapped_rows": None if remapped is None else remapped[0] + remapped[1],
        "is_repair_pending": bool(ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus) or (remapped and remapped[2])),
        "has_repair_failed": bool(remapped and remapped[3]),
        "slowed": [reason for bit, reason in SLOWED.items() if reasons & bit],
        "clock_mhz": clock,
        "max_clock_mhz": ask(pynvml.nvmlDeviceGetMaxClockInfo, pynvml.NVML_CLOCK_SM),
        "power_limit_w": None if power is None else round(power / 1000),
        "default_power_limit_w": None if usual_power is None else round(usual_power / 1000),
        "temperature_c": ask(pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU),
        "pcie_width": ask(pynvml.nvmlDeviceGetCurrPcieLinkWidth),
        "nvlinks": None if links.count(None) == len(links) else sum(map(bool, links)),
        "mig": None if mig is None else bool(mig[0]),
        "compute_mode": COMPUTE_MODES.get(ask(pynvml.nvmlDeviceGetComputeMode)),
        "processes": [_process(one.pid) for one in _processes(ask)],
    }


def _processes(ask: Callable[..., Any]) -> list[Any]:
    """Drivers of before 2022 know only the second form of the question."""
    found = ask(pynvml.nvmlDeviceGetComputeRunningProcesses)
    return (ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v2) or []) if found is None else found


def _process(pid: int) -> str:
    """`4711 python of anna`; its number alone where it belongs to another container."""
    try:
        process = psutil.Process(pid)
        return f"{pid} {process.name()} of {process.username()}"
    except psutil.Error:
        return str(pid)


def xids() -> list[str] | None:
    """The kernel's last messages of errors of GPUs since it was booted; None where this user may not read them."""
    for command in (["dmesg"], ["journalctl", "--dmesg", "--boot", "--no-pager", "--quiet"]):
        with suppress(OSError):
            answer = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=20)
            lines = answer.stdout.decode(errors="replace").splitlines()
            if answer.returncode == 0 and lines:
                return [line.partition("NVRM: ")[2] for line in lines if "NVRM: Xid" in line][-MAX_XIDS:]
    return None


def torch() -> dict[str, Any]:
    """What PyTorch sees, and whether its GPUs compute: `facts.Torch`."""
    import torch

    from deltalm_ds.processor import processor_name

    fault = None
    for index in range(torch.cuda.device_count()):
        try:
            ones = torch.ones(64, 64, device=f"cuda:{index}")
            if not bool(((ones @ ones) == 64).all()):
                fault = f"GPU {index} gives a wrong product"
        except RuntimeError as error:
            fault = f"GPU {index}: {str(error).strip().splitlines()[0]}"
        if fault is not None:
            break
    has_nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_nccl else None,
        "processor": processor_name(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "fault": fault,
    }


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


if __name__ == "__main__":
    print(json.dumps({"nvml": nvml, "torch": torch}[sys.argv[1]]()))
