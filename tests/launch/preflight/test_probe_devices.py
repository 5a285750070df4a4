"""What the driver is asked, by a driver that is not here; what a host without one tells; and PyTorch's own view."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltalm_ds.launch.preflight import probe, probe_devices
from deltalm_ds.launch.preflight.facts import Nvml, Torch
from tests.launch import fake_hosts
from tests.launch.preflight import fake_nvml
from tests.launch.preflight.fake_nvml import V100


def told(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Nvml:
    fake_nvml.install(monkeypatch, V100, V100 | changes)
    monkeypatch.setattr(probe_devices, "xids", list)
    return Nvml.model_validate(probe_devices.nvml())


def test_a_sound_v100(monkeypatch: pytest.MonkeyPatch) -> None:
    found = told(monkeypatch)
    assert found.driver == "535.1"
    first, second = found.gpus
    assert second.model_dump() == first.model_dump() | {"index": 1}
    assert first.name == "Tesla V100-SXM2-32GB"
    assert (first.memory_bytes, first.used_bytes, first.capability) == (32 << 30, 1 << 28, (7, 0))
    assert (first.ecc, first.uncorrected_errors, first.retired_pages, first.remapped_rows) == (True, 0, 3, None)
    assert not (first.is_repair_pending or first.has_repair_failed or first.slowed or first.processes)
    assert (first.clock_mhz, first.max_clock_mhz, first.power_limit_w, first.nvlinks) == (1290, 1530, 300, 6)
    assert (first.mig, first.compute_mode) == (None, None)


@pytest.mark.parametrize(
    ("question", "answer", "fact", "value"),
    [
        (
            "nvmlDeviceGetCurrentClocksThrottleReasons",
            0x48,
            "slowed",
            ("hardware slowdown", "too hot, by the hardware"),
        ),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", 0x7, "slowed", ()),  # idle, as set, at the limit of power
        ("nvmlDeviceGetRetiredPagesPendingStatus", 1, "is_repair_pending", True),
        ("nvmlDeviceGetRemappedRows", (0, 2, 1, 0), "is_repair_pending", True),
        ("nvmlDeviceGetRemappedRows", (3, 2, 0, 1), "has_repair_failed", True),
        ("nvmlDeviceGetRemappedRows", (3, 2, 0, 0), "remapped_rows", 5),
        ("nvmlDeviceGetRetiredPages", None, "retired_pages", None),
        ("nvmlDeviceGetNvLinkState", {0: 1, 1: 0}, "nvlinks", 1),
        ("nvmlDeviceGetNvLinkState", None, "nvlinks", None),
        ("nvmlDeviceGetMigMode", [1, 1], "mig", True),
        ("nvmlDeviceGetComputeMode", 2, "compute_mode", "prohibited"),
        ("nvmlDeviceGetEnforcedPowerLimit", 250_000, "power_limit_w", 250),
        ("nvmlDeviceGetEccMode", None, "ecc", None),
    ],
)
def test_what_is_told_of_one_that_is_not(
    monkeypatch: pytest.MonkeyPatch, question: str, answer: Any, fact: str, value: Any
) -> None:
    found = told(monkeypatch, **{question: answer})
    assert getattr(found.gpus[1], fact) == value


def test_other_programs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """By either form of the question, as old drivers know one only."""
    running = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=2**22 - 1)]
    for form in ("", "_v2"):
        changes = {"nvmlDeviceGetComputeRunningProcesses": None, f"nvmlDeviceGetComputeRunningProcesses{form}": running}
        first, second = told(monkeypatch, **changes).gpus[1].processes
        assert first.startswith(f"{os.getpid()} python") and " of " in first
        assert second == str(2**22 - 1)


def test_errors_that_the_kernel_tells_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = (
        "[ 1.0] eth0: up\\n[ 9.5] NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.\\n[ 9.9] NVRM: loading\\n"
    )
    fake_hosts.write_program(tmp_path / "dmesg", f"#!/bin/sh\nprintf '{lines}'\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe_devices.xids() == ["Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."]


def test_the_kernel_may_not_be_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_hosts.write_program(tmp_path / "dmesg", "#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe_devices.xids() is None


def test_pytorch_tells_of_itself() -> None:
    found = Torch.model_validate(probe_devices.torch())
    assert found.fault is None and found.version


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import sys; sys.exit('No module named torch')", "No module named torch"),
        ("import os; os.kill(os.getpid(), 11)", "exit code -11"),
        ("import time; time.sleep(60)", "no answer within"),
    ],
)
def test_a_child_that_fails_is_a_fact(monkeypatch: pytest.MonkeyPatch, program: str, error: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert error in probe.known(lambda: probe._answer(child, 0.0))["error"]
    child.wait()


def test_ports_of_infiniband(tmp_path: Path) -> None:
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("100 Gb/sec (4X EDR)\n")
    (tmp_path / "mlx5_1" / "ports" / "1").mkdir(parents=True)  # tells nothing
    assert probe._links(tmp_path) == {"mlx5_0/1": {"state": "ACTIVE", "rate": "100 Gb/sec (4X EDR)"}}
