"""The limits of the table can fail: damage that would spoil a training, in the type in which it is hardest to see."""

import dataclasses
import os
from collections.abc import Callable

import pytest
import torch
from kernel_cases import Case, assert_equals_definition, normal
from torch import Tensor

from deltalm_ds.kernels.attention import attention
from deltalm_ds.kernels.dispatch import VARIABLE

NUM_KEYS = 131


def damaged(case: Case, function: Callable[..., Tensor]) -> Case:
    """The case with another function for the backend that is tested."""
    return dataclasses.replace(
        case, function=lambda *x: (case.function if os.environ[VARIABLE] == "reference" else function)(*x)
    )


def attend(num_keys: int) -> Callable[..., Tensor]:
    cu_q, cu_k = torch.tensor([0, NUM_KEYS], dtype=torch.int32), torch.tensor([0, num_keys], dtype=torch.int32)
    return lambda q, k, v: attention(q, k[:num_keys], v[:num_keys], cu_q, cu_k, False, 0.0)


# even weights: a lost value is a hundredth of what the largest element may be off
Q, K, V = (normal(NUM_KEYS, 2, 32, seed=i) for i in range(3))
ATTENTION = Case("attention", attend(NUM_KEYS), (Q / 10, K, V))
SCALED = Case("scaled", lambda x: x * (256 / 230), (normal(64, 64),))
DAMAGES = {
    "nothing": (ATTENTION, attend(NUM_KEYS), torch.bfloat16, None),
    "a lost key": (ATTENTION, attend(NUM_KEYS - 1), torch.bfloat16, "value: .* of it > 0.01"),
    "no other scale": (SCALED, SCALED.function, torch.float16, None),
    "another scale": (SCALED, lambda x: x * (1 / 0.9), torch.float16, "value: .* of it > 0.00125"),
    "a lost row": (SCALED, lambda x: x * (256 / 230) * (torch.arange(64) > 0)[:, None], torch.bfloat16, "value: "),
    "one wild element": (
        SCALED,
        lambda x: x * (256 / 230) + (torch.arange(4096).view(64, 64) == 70) * 0.6,
        torch.bfloat16,
        "value: ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen(damage: str) -> None:
    case, function, dtype, message = DAMAGES[damage]
    if message is None:
        assert_equals_definition(damaged(case, function), dtype, "torch")
        return
    with pytest.raises(AssertionError, match=message):
        assert_equals_definition(damaged(case, function), dtype, "torch")


def test_a_looser_case_is_not_loose_in_16_bits() -> None:
    """What float32 rounding is enlarged by is nothing beside a unit of 16 bits."""
    case = dataclasses.replace(SCALED, loosen=2000.0)
    with pytest.raises(AssertionError, match="value: "):
        assert_equals_definition(damaged(case, lambda x: x * (256 / 230) + 1), torch.bfloat16, "torch")


def test_nan_is_seen() -> None:
    zeros = Case("zeros", lambda x: x * 0, (normal(3, 4),))
    with pytest.raises(AssertionError, match="value: nan"):
        assert_equals_definition(damaged(zeros, lambda x: x * 0 + float("nan")), torch.float32, "torch")
