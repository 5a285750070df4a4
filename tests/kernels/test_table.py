"""PyTorch's paths against the definitions, on the table that the fused kernels share; and their derivatives."""

import pytest
import torch
from kernel_cases import Case, assert_equals_definition, cases_of

from deltalm_ds.kernels.table import OPS

CASES = [pytest.param(case, id=f"{op}-{case}") for op in OPS for case in cases_of(op, dropped=False)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_torch_equals_the_definition(case: Case, dtype: torch.dtype) -> None:
    assert_equals_definition(case, dtype, "torch")


@pytest.mark.parametrize("case", [case for case in CASES if sum(x.numel() for x in case.values[0].inputs) < 1000])
def test_gradcheck(case: Case) -> None:
    inputs = [x.clone().requires_grad_() for x in case.inputs]
    scale = max(1.0, max((x.abs().max().item() for x in inputs if x.numel()), default=1.0))
    # a backward for each element of many outputs takes minutes: there random directions
    in_directions = case.function(*inputs).numel() > 10_000
    assert torch.autograd.gradcheck(case.function, inputs, eps=1e-6 * scale, atol=1e-4, fast_mode=in_directions)
