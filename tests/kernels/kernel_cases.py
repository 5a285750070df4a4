"""How close a result must be to the definition, in every type; the cases are in one file an op.

`cases_<op>.py`, which each row of the table of ops must have, holds `cases`, what is compared with the definition, and
`launches`, what is compiled for GPUs.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from deltalm_ds.kernels.dispatch import VARIABLE
from deltalm_ds.kernels.table import OPS

DROPOUT = 0.25  # 64 of 256 exactly
# Units of the last place, of the largest value of the expected tensor: sums of a few hundred rounded terms, and in 16
# bits the rounding of what lies between two kernels (the products, the probabilities, the logits).
UNITS = {torch.float64: 1000.0, torch.float32: 64.0, torch.float16: 16.0, torch.bfloat16: 16.0}
# Of the norm of the difference from that of the expected tensor: that may be one unit of 16 bits in a few elements, but
# is not what a key that was left out, or a wrong scale, changes everywhere.
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1.25e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class Case:
    """An op on float64 inputs, each of which gets a gradient.

    loosen: by how much more than by `UNITS` a result may be off where it is computed, in float32 at least, and why.
    loosen_relative: by how much more than by `RELATIVE` it may be off in its own dtype.
    """

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    loosen: float = 1.0
    loosen_relative: float = 1.0
    why: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Launch:
    """An op in one of its usual forms, on tensors as large as training's, and the inputs that get gradients."""

    name: str
    function: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]


def cases_of(op: str, dropped: bool) -> list[Case]:
    """The cases of an op; `dropped` tells whether elements fall out (masks are equal for fused and reference only)."""
    return importlib.import_module(f"cases_{op}").cases(dropped)


def launches_of(op: str, dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """What `compile_launches.py` compiles of an op; with `is_wide` in rarer shapes."""
    return importlib.import_module(f"cases_{op}").launches(dtype, is_wide)


def small_cases() -> dict[str, Case]:
    """One case, neither large nor trivial, of every op with gradients; elements drop where the op drops any."""
    small = {}
    for op in OPS:
        cases = [case for case in cases_of(op, True) or cases_of(op, False) if case.inputs[0].numel() >= 20]
        if cases:
            small[op] = cases[0]
    return small


def assert_equals_definition(
    case: Case, dtype: torch.dtype, backend: str, device: str = "cpu", place: Any = None
) -> None:
    """Value and all gradients of `backend` in `dtype` against the definition in float64, on the same rounded inputs.

    place: where inputs are put (into guarded memory, say).
    """
    rounded = [x.to(dtype) for x in case.inputs]
    generator = torch.Generator().manual_seed(5)
    found = _value_and_gradients(case, [(place or Tensor.clone)(x.to(device)) for x in rounded], backend, generator)
    generator.manual_seed(5)
    expected = _value_and_gradients(case, [x.double().clone().to(device) for x in rounded], "reference", generator)
    for name, a, b in zip(["value", *(f"gradient {i}" for i in range(9))], found, expected, strict=False):
        assert a.dtype in (dtype, torch.float32), name
        assert_close(name, a.double(), b, case, dtype)


def assert_close(name: str, found: Tensor, expected: Tensor, case: Case, dtype: torch.dtype) -> None:
    """The largest difference and the norm of all are within the limits of `dtype`. Both tensors: float64."""
    if not expected.numel():
        return
    computed = torch.promote_types(dtype, torch.float32)
    limit = max(UNITS[dtype] * torch.finfo(dtype).eps, case.loosen * UNITS[computed] * torch.finfo(computed).eps)
    limit *= max(1.0, expected.abs().max().item())
    difference = found - expected
    largest = difference.abs().max().item()
    assert largest <= limit, f"{name}: {largest:.3g} > {limit:.3g}"
    norm, expected_norm = difference.norm().item(), expected.norm().item()
    limit = RELATIVE[dtype] * case.loosen_relative
    assert not expected_norm or norm <= limit * expected_norm, f"{name}: {norm / expected_norm:.3g} of it > {limit:.3g}"


def _value_and_gradients(case: Case, inputs: list[Tensor], backend: str, generator: torch.Generator) -> list[Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, backend)
        torch.manual_seed(3)  # of the seeds that dropout draws
        out = case.function(*(x.requires_grad_() for x in inputs))
        grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).half()  # the same number in every type
        return [out, *torch.autograd.grad(out, inputs, grad.to(out), materialize_grads=True)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameter(*shape: int, dtype: torch.dtype) -> Tensor:
    """Zeros that get a gradient, for launches."""
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


def model_width(is_wide: bool) -> int:
    """The model dimension of launches: that of the base model, or an odd one."""
    return 1000 if is_wide else 768
