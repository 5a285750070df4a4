"""Precisions that the processor lacks are refused or warned about, and only those."""

import platform
from pathlib import Path

import pytest
import torch

from deltalm_ds.errors import InputError
from deltalm_ds.processor import check_precision, native_bfloat16

HASWELL = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}
SAPPHIRE_RAPIDS = {"avx2": True, "avx512_bf16": True, "amx_bf16": True}
GRAVITON_3 = {"neon": True, "bf16": True}


@pytest.fixture
def machine(monkeypatch):
    def pretend(capabilities, has_gpu=False, sm=(7, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: sm)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)

    return pretend


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of x86 processors")
def test_native_bfloat16_is_what_linux_says():
    flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    assert native_bfloat16() == bool({"avx512_bf16", "amx_bf16"} & set(flags))


@pytest.mark.parametrize(("capabilities", "expected"), [(HASWELL, False), (SAPPHIRE_RAPIDS, True), (GRAVITON_3, True)])
def test_native_bfloat16_of_other_processors(capabilities, expected, machine):
    machine(capabilities)
    assert native_bfloat16() == expected


@pytest.mark.parametrize(
    ("precision", "matmul_precision", "warning"),
    [
        ("bf16", "highest", "5 to 8 times slower"),
        ("fp32", "medium", "medium makes nothing faster"),
        ("fp32", "highest", None),
        ("fp32", "high", None),
    ],
)
def test_a_processor_without_bfloat16_is_warned_about(precision, matmul_precision, warning, machine, capsys):
    machine(HASWELL)
    check_precision(precision, matmul_precision)
    output = capsys.readouterr()
    assert output.out == "" and (warning in output.err if warning else output.err == "")
    for capabilities, has_gpu in ((SAPPHIRE_RAPIDS, False), (HASWELL, True)):
        machine(capabilities, has_gpu)
        check_precision(precision, matmul_precision)
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize("sm", [(7, 0), (8, 0), (9, 0)])
def test_exact_products_are_slow_where_there_is_tf32(sm, machine, capsys):
    machine(HASWELL, has_gpu=True, sm=sm)
    for precision, matmul_precision in (("fp32", "highest"), ("fp32", "high"), ("fp32", "medium"), ("bf16", "highest")):
        check_precision(precision, matmul_precision)
        is_warned = "times slower than in TF32" in capsys.readouterr().err
        assert is_warned == (sm >= (8, 0) and (precision, matmul_precision) == ("fp32", "highest"))


def test_fp16_needs_a_gpu(machine):
    machine(SAPPHIRE_RAPIDS, has_gpu=True)
    check_precision("fp16", "highest")
    machine(SAPPHIRE_RAPIDS)
    with pytest.raises(InputError, match=r"fp16 needs a GPU.*fp32_zero1"):
        check_precision("fp16", "highest")
