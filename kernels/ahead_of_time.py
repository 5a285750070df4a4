"""Launches of fused kernels without a GPU: compiled for a named architecture and bound, but not run.

The real host code runs on CPU tensors under a driver that only names the architecture. Not for use beside a GPU: what
is set here stays set for the process.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler.compiler import CompiledKernel

from deltalm_ds.kernels import dispatch


class NamedTarget(DriverBase):
    """A driver without a device. Triton demands its last two methods, which compiling and binding never call."""

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


def pretend(architecture: int) -> None:
    """From here on every op is served by its fused kernel, as on a GPU of this architecture (90: sm_90)."""
    triton.runtime.driver.set_active(NamedTarget(architecture))
    os.environ[dispatch.VARIABLE] = "triton"

    @functools.cache
    def capability(device: torch.device) -> tuple[int, int] | None:
        return divmod(architecture, 10)

    dispatch.compute_capability = capability


def launch_nothing(on_launch: Callable[[CompiledKernel], None]) -> None:
    """Kernels are compiled and their arguments bound, as for a launch, which is only told of."""

    def no_device(kernel: CompiledKernel) -> None:
        kernel._run = lambda *arguments: on_launch(kernel)

    CompiledKernel._init_handles = no_device
