"""Every launch of the fused ops compiled for real GPUs, without one: what the compiler made of it."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltalm_ds.devices import find_device
from deltalm_ds.kernels.dispatch import choose
from deltalm_ds.kernels.table import OPS

pytest.importorskip("triton", reason="Triton is not installed")
import compile_launches

# Of attention in 16 bits, by (architecture, kernel, dropout), where it is not 12
LEAST_WARPS = {
    (90, "forward_kernel", False): 16,
    (90, "forward_kernel", True): 16,
    (90, "grad_query_kernel", False): 16,
    (90, "grad_key_value_kernel", True): 8,
}
SHARED_BYTES = {70: 96 * 1024, 80: 163 * 1024, 90: 227 * 1024}  # that one block may have
COUNT = Path(__file__).parent / "count_compilations.py"

of_training = functools.cache(compile_launches.compiled)


def kernels_of(rows: list[dict[str, Any]], op: str) -> set[str]:
    return {row["kernel"] for row in rows if row["op"].split("/")[0] == op}


@pytest.mark.parametrize("architecture", [70, 80, 90])
def test_launches_of_training(architecture: int) -> None:
    rows = of_training(architecture)
    served = {name for name, op in OPS.items() if architecture >= 80 or not op.needs_tensor_cores}
    assert {row["op"].split("/")[0] for row in rows} == served
    assert kernels_of(rows, "top_k") == {"_tile_kernel", "_row_kernel"}
    assert kernels_of(rows, "feed_forward") == {"_forward_kernel", "_backward_kernel", "_add_strips_kernel"}
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
            assert compile_launches.blocks_of_an_sm(row, architecture) * row["warps"] >= least, row


@pytest.mark.parametrize("has_dropout", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_above_sm_70_is_chosen_for_a_v100(dtype: torch.dtype, has_dropout: bool) -> None:
    """No product of Triton's, no FlashAttention; and what is compiled for it has no instruction of a later one."""
    capability = find_device("v100")[1].capability
    chosen = {name: choose(op, capability, dtype, has_dropout).backend for name, op in OPS.items()}
    fused = {name for name, backend in chosen.items() if backend == "triton"}
    assert set(chosen.values()) == {"torch", "triton"}
    assert chosen["attention"] == "torch" and not any(OPS[name].needs_tensor_cores for name in fused)
    rows = [row for row in of_training(70) if row["op"].split("/")[0] in fused]
    assert {row["op"].split("/")[0] for row in rows} == fused
    assert {row["target"] for row in rows} == {"sm_70"}
    assert [row for row in rows if row["above_sm_70"] or row["matrix_products"] or "bfloat16" in row["op"]] == []
    later = [row for row in of_training(90) if row["op"].startswith("attention/torch.bfloat16")]
    assert later and all(row["above_sm_70"] for row in later)  # they would be seen


def test_the_recorded_table_is_of_this_code() -> None:
    """Registers, stages and shared memory stand in the docs; with another Triton they may differ."""
    recorded = compile_launches.TABLE.read_text(encoding="utf-8")
    if f"by Triton {compile_launches.triton.__version__}\n" not in recorded:
        pytest.skip("recorded with another Triton")
    now = compile_launches.table({architecture: of_training(architecture) for architecture in (80, 90)})
    assert now == recorded, "write it anew: python tests/kernels/compile_launches.py --record"


def test_no_number_of_tokens_or_sequences_is_compiled_again() -> None:
    """One kernel a form and direction in 400 micro-batches: attention three (causal or not), the norm and the FFN two
    and one that adds up strips, dropout one for both directions; a search two, for any number of bans."""
    process = subprocess.run([sys.executable, COUNT], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    expected = {"attention": 2 * 3, "layer_norm": 3 * 2 + 1, "feed_forward": 2 * 2 + 1, "dropout": 1, "top_k": 2}
    assert json.loads(process.stdout) == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [70, 80, 90])
def test_rarer_launches(architecture: int) -> None:
    """Other head dims, float16, odd widths: these may spill a little, but must fit into a block's memory."""
    for row in compile_launches.compiled(architecture, "--wide"):
        assert row["shared"] <= SHARED_BYTES[architecture], row
        assert row["stack"] <= 64, row
