"""The record of machine and versions that every run directory and report carries."""

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltalm_ds
from deltalm_ds.environment import PACKAGES, environment
from deltalm_ds.kernels.dispatch import VARIABLE
from deltalm_ds.kernels.table import OPS


def test_states_what_is_installed() -> None:
    record = environment()
    assert record["deltalm_ds"] == deltalm_ds.__version__
    assert record["python"] == ".".join(map(str, sys.version_info[:3])) == platform.python_version()
    assert record["packages"].keys() == set(PACKAGES)
    assert record["packages"]["torch"] == torch.__version__
    assert record["cpu_cores"] == os.cpu_count()


def test_is_plain_json() -> None:
    record = environment()
    assert json.loads(json.dumps(record)) == record


def test_absent_packages_are_null(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    packages = environment()["packages"]
    assert packages.pop("torch") == torch.__version__  # it is there: this runs in it
    assert set(packages.values()) <= {None, "installed"}


@pytest.mark.parametrize(("built", "expected"), [(False, None), (True, "installed")])
def test_apex_is_known_by_its_kernels(monkeypatch: pytest.MonkeyPatch, built: bool, expected: str | None) -> None:
    """PyPI's apex is another package: its metadata must not count."""
    spec = importlib.machinery.ModuleSpec("fused_layer_norm_cuda", None) if built else None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.10dev")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert environment()["packages"]["apex"] == expected


def test_processor_is_the_kernels_name_for_it() -> None:
    if shutil.which("lscpu") is None:
        pytest.skip("there is no lscpu to compare with")
    lscpu = subprocess.run(["lscpu"], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    name = re.search(r"^Model name:\s*(.+)$", lscpu.stdout, re.MULTILINE)
    if name is None:
        pytest.skip("lscpu names no processor")
    assert environment()["processor"] == name[1].strip()


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def properties(index: int) -> Any:
        return SimpleNamespace(name=f"GPU {index}", total_memory=1 << 34, major=7, minor=0)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    gpus = environment()["gpus"]
    assert gpus == [{"name": f"GPU {index}", "memory_bytes": 1 << 34, "sm": [7, 0]} for index in range(2)]


def test_says_what_serves_each_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "reference")
    assert environment()["kernels"] == dict.fromkeys(OPS, "reference (DELTALM_KERNELS is set)")
