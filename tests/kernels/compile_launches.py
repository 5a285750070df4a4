"""Compile every launch of the fused ops for one architecture, without a GPU: `python compile_launches.py 80 [--wide]`.

The real host code runs on CPU tensors; each kernel it launches is compiled and not run. Prints one JSON object a kernel
and launch. With `--record` the table of sm_80 and sm_90 is written anew: docs/compiled_kernels.md.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_cases import Launch, launches_of
from triton.compiler.compiler import CompiledKernel

from deltalm_ds.kernels.ahead_of_time import launch_nothing, pretend
from deltalm_ds.kernels.table import OPS

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX_PRODUCT = re.compile(r"mma\.sync|wgmma\.mma_async")
ABOVE_SM_70 = re.compile(r"cp\.async|ldmatrix|wgmma|\bmma\.|\.bf16|\.tf32|createpolicy")
TABLE = Path(__file__).parents[2] / "docs" / "compiled_kernels.md"
SHARED_OF_SM = {80: 164 * 1024, 90: 228 * 1024}  # bytes, of which every block takes 1,024 for the system
WIDE_LOAD = re.compile(r"ld\.global\S*\.v(?:4\.b32|2\.b64)|cp\.async\.cg\.shared\.global.*\], 0x10")  # 16 bytes


def launches(architecture: int, is_wide: bool) -> Iterator[tuple[str, Launch]]:
    """Name and launch of every op that has fused kernels there, in its usual forms or in rarer ones."""
    sixteen_bits = torch.bfloat16 if architecture >= 80 and not is_wide else torch.float16
    for dtype in (sixteen_bits, torch.float32):
        for name, op in OPS.items():
            if architecture >= 80 or not op.needs_tensor_cores:
                for launch in launches_of(name, dtype, is_wide):
                    yield f"{name}/{dtype}/{launch.name}", launch


def describe(kernel: CompiledKernel) -> dict[str, Any]:
    """What the compiler says of a kernel, and what its code holds; stack, and shared memory in bytes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resources = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", usage)}
    ptx = kernel.asm["ptx"]
    return {
        "kernel": kernel.metadata.name,
        "target": re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)[0],
        "above_sm_70": len(ABOVE_SM_70.findall(ptx)),
        "registers": resources["REG"],
        "stack": resources["STACK"],
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "stages": kernel.metadata.num_stages,
        "matrix_products": len(MATRIX_PRODUCT.findall(ptx)),
        "wide_loads": len(WIDE_LOAD.findall(ptx)),
    }


def blocks_of_an_sm(row: dict[str, Any], architecture: int) -> int:
    """How many blocks of a kernel a multiprocessor holds at once: what registers, shared memory and warps allow.

    Each of its four parts has 16,384 registers and gives them to warps 256 at a time.
    """
    registers_of_warp = -(-32 * row["registers"] // 256) * 256
    num_warps = min(16384 // registers_of_warp * 4, 64)
    by_memory = SHARED_OF_SM[architecture] // (row["shared"] + 1024)
    return min(num_warps // row["warps"], by_memory, 32)


def table(rows_of: dict[int, list[dict[str, Any]]]) -> str:
    """docs/compiled_kernels.md. rows_of: what this script prints, by architecture."""
    text = f"""# What the compiler makes of the fused kernels

Every launch of training and generation in base's shapes, compiled without a GPU by Triton {triton.__version__}
(`python tests/kernels/compile_launches.py --record` writes this file; a test compares it). Registers a thread; stack:
bytes that did not fit into them; shared memory in bytes; blocks a multiprocessor holds at once, and their warps of 64.
"""
    for architecture, rows in rows_of.items():
        text += f"""
## sm_{architecture}

| op, type, form | kernel | warps | stages | registers | stack | shared | blocks (warps) |
|---|---|---|---|---|---|---|---|
"""
        for row in rows:
            blocks = blocks_of_an_sm(row, architecture)
            numbers = (row["warps"], row["stages"], row["registers"], row["stack"], f"{row['shared']:,}")
            cells = (row["op"].replace("torch.", ""), row["kernel"], *numbers, f"{blocks} ({blocks * row['warps']})")
            text += "| " + " | ".join(map(str, cells)) + " |\n"
    return text


def compiled(architecture: int, *options: str) -> list[dict[str, Any]]:
    """What this script prints for an architecture; in a process of its own, as it sets what Triton thinks is there."""
    command = [sys.executable, __file__, str(architecture), *options]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def main() -> None:
    """Compile, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("architecture", type=int, nargs="?", default=90)
    parser.add_argument("--wide", action="store_true", help="rarer shapes instead of those of training")
    parser.add_argument("--record", action="store_true", help="write the table of both architectures instead")
    arguments = parser.parse_args()
    if arguments.record:
        TABLE.write_text(
            table({architecture: compiled(architecture) for architecture in SHARED_OF_SM}), encoding="utf-8"
        )
        return
    pretend(arguments.architecture)
    launched: list[CompiledKernel] = []
    launch_nothing(launched.append)
    for name, launch in launches(arguments.architecture, arguments.wide):
        launched.clear()
        out = launch.function()
        if launch.inputs:
            torch.autograd.grad(out, launch.inputs, torch.zeros_like(out))
        for kernel in launched:
            print(json.dumps({"op": name, **describe(kernel)}), flush=True)


if __name__ == "__main__":
    main()
