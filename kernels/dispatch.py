"""Which backend serves an op: `triton` (fused kernels), `torch` (PyTorch's own), or `reference` (plain definitions).

An op's file ends with its `OP`, one function per backend, and its public function calls the one that `implementation`
chooses. `table.py` has a row for each op.

The environment variable DELTALM_KERNELS forces a backend for every op, or `apex` or `flash` for the ops that have it.
It is read whenever a backend is chosen; code that torch.compile made keeps what was chosen when it was traced.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltalm_ds.errors import InputError
from deltalm_ds.kernels.torch_internals import constant_when_traced

BACKENDS = ("torch", "triton", "reference", "apex", "flash")
OF_SOME_OPS = ("apex", "flash")  # forcing one of them leaves the ops without it as they are
SIXTEEN_BITS = (torch.float16, torch.bfloat16)
VARIABLE = "DELTALM_KERNELS"


class Choice(NamedTuple):
    """A backend and the reason for it."""

    backend: str
    why: str


class Preference(NamedTuple):
    """What serves an op best on GPUs of at least this compute capability, with dropout or without, and why."""

    capability: tuple[int, int]
    dtypes: tuple[torch.dtype, ...]
    has_dropout: bool
    choice: Choice


class Op(NamedTuple):
    """What serves an op: a function per backend, all of the same arguments and results.

    torch: PyTorch's own functions, on every device.
    triton: a fused kernel, of which the file is imported when it is first called.
    reference: the plain definition, which the others must equal.
    apex: NVIDIA's apex, for GPUs, on demand.
    flash: PyTorch's FlashAttention-2, for GPUs from sm_80 on, in 16 bits.
    needs_tensor_cores: whether the fused kernel multiplies matrices; without tensor cores torch's functions are faster.
    preferences: which of them serves GPUs that could have several; the first row that fits, else the fused kernel.
    """

    torch: Callable[..., Any]
    triton: Callable[..., Any]
    reference: Callable[..., Any]
    apex: Callable[..., Any] | None = None
    flash: Callable[..., Any] | None = None
    needs_tensor_cores: bool = False
    preferences: tuple[Preference, ...] = ()


def implementation(op: Op, x: Tensor, has_dropout: bool = False) -> Callable[..., Any]:
    """The function of `op` that serves tensors of x's device and dtype, where elements are dropped or not.

    Raises:
        InputError: DELTALM_KERNELS names what there is not, or what is not installed.
    """
    return getattr(op, _backend(op, x.device, x.dtype, has_dropout))


@constant_when_traced  # what it asks for, tracing could not follow
def _backend(op: Op, device: torch.device, dtype: torch.dtype, has_dropout: bool) -> str:
    return choose(op, compute_capability(device), dtype, has_dropout).backend


def choose(op: Op, capability: tuple[int, int] | None, dtype: torch.dtype, has_dropout: bool = False) -> Choice:
    """The backend of an op, and why.

    Args:
        op: one of the table.
        capability: compute capability of the tensors' device, None where it is no GPU.
        dtype: theirs.
        has_dropout: whether elements are dropped.

    Raises:
        InputError: as `implementation`.
    """
    forced = forced_backend()
    if forced is not None and (forced not in OF_SOME_OPS or _serves(forced, op, capability, dtype)):
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
    for preference in op.preferences:
        fits = capability >= preference.capability and dtype in preference.dtypes
        if fits and has_dropout == preference.has_dropout:
            return preference.choice
    return Choice("triton", "fused kernel")


def _serves(backend: str, op: Op, capability: tuple[int, int] | None, dtype: torch.dtype) -> bool:
    """Whether an op has this backend of some ops, there and in this dtype."""
    if getattr(op, backend) is None or capability is None:
        return False
    return backend != "flash" or (capability >= (8, 0) and dtype in SIXTEEN_BITS)


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
