"""Every launch of the fused ops compiled for real GPUs, without one: what the compiler made of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltalm_ds.kernels.table import OPS

SCRIPT = Path(__file__).parent / "compile_launches.py"
# Of attention in 16 bits, by (architecture, kernel, dropout), where it is not 12
LEAST_WARPS = {
    (90, "forward_kernel", False): 16,
    (90, "forward_kernel", True): 16,
    (90, "grad_query_kernel", False): 16,
    (90, "grad_key_value_kernel", True): 8,
}
SHARED_BYTES = {70: 96 * 1024, 80: 163 * 1024, 90: 227 * 1024}  # that one block may have


REGISTERS, WARPS = 65536, 64  # of a multiprocessor


def resident_warps(row: dict[str, Any], architecture: int) -> int:
    """How many warps of a kernel a multiprocessor holds, which gives registers to warps 256 at a time."""
    of_a_warp = -(-row["registers"] * 32 // 256) * 256
    blocks = min(REGISTERS // 4 // of_a_warp * 4, WARPS) // row["warps"]
    return row["warps"] * min(blocks, (SHARED_BYTES[architecture] + 1024) // (row["shared"] + 1024))


def compiled(architecture: int, *options: str) -> list[dict[str, Any]]:
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, SCRIPT, str(architecture), *options]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def kernels_of(rows: list[dict[str, Any]], op: str) -> set[str]:
    return {row["kernel"] for row in rows if row["op"].split("/")[0] == op}


@pytest.mark.parametrize("architecture", [70, 80, 90])
def test_launches_of_training(architecture: int) -> None:
    rows = compiled(architecture)
    served = {name for name, op in OPS.items() if architecture >= 80 or not op.needs_tensor_cores}
    assert {row["op"].split("/")[0] for row in rows} == served
    assert kernels_of(rows, "top_k") == {"_tile_kernel", "_row_kernel"}
    assert kernels_of(rows, "feed_forward") == {"_forward_kernel", "_backward_kernel"}
    for row in rows:
        assert row["shared"] <= SHARED_BYTES[architecture], row
        # everything is in registers; attention in float32, twice as large, just about
        assert row["stack"] <= (16 if row["op"].startswith("attention/torch.float32") else 0), row
        assert row["wide_loads"] > 0 or row["kernel"] == "_row_kernel", row  # 16 bytes a load, where all is read
    if architecture >= 80:
        assert kernels_of(rows, "attention") == {"forward_kernel", "grad_query_kernel", "grad_key_value_kernel"}
        in_16_bits = [row for row in rows if row["op"].startswith("attention/torch.bfloat16")]
        assert in_16_bits
        assert all(row["matrix_products"] > 0 for row in in_16_bits)  # on tensor cores
        for row in in_16_bits:  # as the tiles were chosen for
            least = LEAST_WARPS.get((architecture, row["kernel"], " 0.1" in row["op"]), 12)
            assert resident_warps(row, architecture) >= least, row


def test_attention_is_compiled_few_times() -> None:
    """Three kernels, causal or not, whatever the numbers of sequences and tokens of 400 micro-batches."""
    pytest.importorskip("triton", reason="Triton is not installed")
    command = [sys.executable, SCRIPT.with_name("count_compilations.py")]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) == 6


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [70, 80, 90])
def test_rarer_launches(architecture: int) -> None:
    """Other head dims, float16, odd widths: these may spill a little, but must fit into a block's memory."""
    for row in compiled(architecture, "--wide"):
        assert row["shared"] <= SHARED_BYTES[architecture], row
        assert row["stack"] <= 64, row
