"""Compile every launch of the fused ops for one architecture, without a GPU: `python compile_launches.py 80 [--wide]`.

The real host code runs on CPU tensors under a driver that only names the architecture; each kernel it launches is
compiled and not run. Prints one JSON object a kernel and launch.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_cases import Launch, launches_of
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.table import OPS

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MATRIX_PRODUCT = re.compile(r"mma\.sync|wgmma\.mma_async")
WIDE_LOAD = re.compile(r"ld\.global\S*\.v(?:4\.b32|2\.b64)|cp\.async\.cg\.shared\.global.*\], 0x10")  # 16 bytes


class NamedTarget(DriverBase):
    """A driver without a device."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError


def launches(architecture: int, is_wide: bool) -> Iterator[tuple[str, Launch]]:
    """Name and launch of every op that has fused kernels there, in its usual forms or in rarer ones."""
    sixteen_bits = torch.bfloat16 if architecture >= 80 and not is_wide else torch.float16
    for dtype in (sixteen_bits, torch.float32):
        for name, op in OPS.items():
            if architecture >= 80 or not op.needs_tensor_cores:
                for launch in launches_of(name, dtype, is_wide):
                    yield f"{name}/{dtype}/{launch.name}", launch


def describe(kernel: Any) -> dict[str, Any]:
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
        "registers": resources["REG"],
        "stack": resources["STACK"],
        "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "matrix_products": len(MATRIX_PRODUCT.findall(ptx)),
        "wide_loads": len(WIDE_LOAD.findall(ptx)),
    }


def main() -> None:
    """Compile, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("architecture", type=int)
    parser.add_argument("--wide", action="store_true", help="rarer shapes instead of those of training")
    arguments = parser.parse_args()
    triton.runtime.driver.set_active(NamedTarget(arguments.architecture))
    os.environ[dispatch.VARIABLE] = "triton"
    dispatch.compute_capability = lambda device: divmod(arguments.architecture, 10)
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(self, *args, grid=grid, warmup=True, **options))

    JITFunction.run = compile_only
    for name, launch in launches(arguments.architecture, arguments.wide):
        compiled.clear()
        out = launch.function()
        if launch.inputs:
            torch.autograd.grad(out, launch.inputs, torch.zeros_like(out))
        for kernel in compiled:
            print(json.dumps({"op": name, **describe(kernel)}), flush=True)


if __name__ == "__main__":
    main()
