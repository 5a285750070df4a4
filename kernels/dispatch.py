"""Which backend serves an op: `triton` (fused kernels), `torch` (PyTorch's own), or `reference` (plain definitions).

An op's file ends with its `OP`, one function per backend, and its public function calls the one that `implementation`
chooses. `table.py` has a row for each op.

The environment variable DELTALM_KERNELS forces a backend for every op, or `apex` for the ops that have it. It is read
whenever a backend is chosen; code that torch.compile made keeps what was chosen when it was traced.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltalm_ds.errors import InputError

BACKENDS = ("torch", "triton", "reference", "apex")
VARIABLE = "DELTALM_KERNELS"


class Op(NamedTuple):
    """What serves an op: a function per backend, all of the same arguments and results.

    torch: PyTorch's own functions, on every device.
    triton: a fused kernel, of which the file is imported when it is first called.
    reference: the plain definition, which the others must equal.
    apex: NVIDIA's apex, for GPUs, on demand.
    needs_tensor_cores: whether the fused kernel multiplies matrices; without tensor cores torch's functions are faster.
    """

    torch: Callable[..., Any]
    triton: Callable[..., Any]
    reference: Callable[..., Any]
    apex: Callable[..., Any] | None = None
    needs_tensor_cores: bool = False


class Choice(NamedTuple):
    """A backend and the reason for it."""

    backend: str
    why: str


def implementation(op: Op, x: Tensor) -> Callable[..., Any]:
    """The function of `op` that serves tensors of x's device and dtype.

    Raises:
        InputError: DELTALM_KERNELS names what there is not, or what is not installed.
    """
    return getattr(op, _backend(op, x.device, x.dtype))


@torch.compiler.assume_constant_result  # what it asks for, tracing could not follow
def _backend(op: Op, device: torch.device, dtype: torch.dtype) -> str:
    return choose(op, compute_capability(device), dtype).backend


def choose(op: Op, capability: tuple[int, int] | None, dtype: torch.dtype) -> Choice:
    """The backend of an op for tensors of `dtype` on a device of this compute capability (None: not a GPU).

    Raises:
        InputError: as `implementation`.
    """
    forced = forced_backend()
    if forced == "apex" and op.apex is not None and capability is not None:
        return Choice("apex", f"{VARIABLE} is set")
    if forced not in (None, "apex"):
        return Choice(forced, f"{VARIABLE} is set")
    if capability is None:
        return Choice("torch", "not a CUDA device")
    if not triton_is_installed():
        return Choice("torch", "Triton is not installed")
    if dtype == torch.float64:
        return Choice("torch", "the fused kernels compute in float32")
    if dtype == torch.bfloat16 and capability < (8, 0):
        return Choice("torch", "no bfloat16 below sm_80")
    if op.needs_tensor_cores and capability < (8, 0):
        return Choice("torch", "Triton has no tensor-core products below sm_80")
    return Choice("triton", "fused kernel")


def forced_backend() -> str | None:
    """The backend that DELTALM_KERNELS names, None if it is not set or empty.

    Raises:
        InputError: there is no such backend, or its package is not installed.
    """
    name = os.environ.get(VARIABLE) or None
    if name not in (None, *BACKENDS):
        raise InputError(f"{VARIABLE}={name} names no backend: choose one of {', '.join(BACKENDS)}, or unset it.")
    if name == "triton" and not triton_is_installed():
        raise InputError(f"{VARIABLE}=triton needs the package triton, which is not installed.")
    if name == "apex":
        require_apex(f"{VARIABLE}=apex")
    return name


@functools.cache
def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """(major, minor) of a CUDA device, None for any other."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def triton_is_installed() -> bool:
    """Whether Triton can be imported; CPU builds of torch come without it."""
    return importlib.util.find_spec("triton") is not None


def apex_is_installed() -> bool:
    """Whether NVIDIA's apex can be used, known by its kernels: the package of this name on PyPI is another one."""
    return importlib.util.find_spec("fused_layer_norm_cuda") is not None


def require_apex(user: str) -> None:
    """Raise InputError if NVIDIA's apex, which `user` needs, cannot be used."""
    if not apex_is_installed():
        raise InputError(f"{user} needs NVIDIA's apex, built with its CUDA extensions, which is not installed.")
