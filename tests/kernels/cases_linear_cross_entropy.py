"""Cases of the output projection with its loss."""

from collections.abc import Iterator
from typing import Any

import torch
from kernel_cases import Case, Launch, model_width, normal, parameter
from torch import Tensor

from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL, linear_cross_entropy


def _case(name: str, hidden: Tensor, weight: Tensor, vocabulary: int, smoothing: float, **more: Any) -> Case:
    labels = torch.randint(vocabulary, (len(hidden),), generator=torch.Generator().manual_seed(9))
    labels[1::3] = IGNORED_LABEL
    return Case(
        f"{name}-{len(hidden)}x{vocabulary}of{len(weight)}-{smoothing}",
        lambda hidden, weight: (
            linear_cross_entropy(hidden, weight, labels.to(hidden.device), vocabulary, smoothing).loss
        ),
        (hidden, weight),
        **more,
    )


def cases(dropped: bool) -> list[Case]:
    """With and without padding rows, ignored labels and smoothing; nothing is dropped."""
    if dropped:
        return []
    cases = []
    # beside and at the ends of the kernel's blocks of 4,096 columns
    sizes = [(1, 64, 2), (5, 64, 37), (12, 31, 31), (3, 5056, 5003), (2, 4104, 4096), (3, 4096, 4096), (0, 8, 5)]
    for num_tokens, rows, vocabulary in sizes:
        for smoothing in (0.0, 0.1):
            hidden, weight = normal(num_tokens, 6), normal(rows, 6, seed=1)
            cases.append(_case("normal", hidden, weight, vocabulary, smoothing))
    # logits up to 1e4 in every type without rounding, as hidden picks one column
    weight = torch.randint(-1250, 1250, (64, 5), generator=torch.Generator().manual_seed(1)) * 8.0
    cases.append(_case("extreme", torch.eye(5, dtype=torch.float64), weight.double(), 61, 0.1))
    cases.append(_case("equal-rows", normal(4, 3), torch.zeros(48, 3, dtype=torch.float64), 48, 0.1))
    return cases


def launches(dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """With padding rows."""
    width = model_width(is_wide)
    hidden, weight = parameter(3, width, dtype=dtype), parameter(8256, width, dtype=dtype)
    labels = torch.zeros(3, dtype=torch.int64)
    yield Launch("", lambda: linear_cross_entropy(hidden, weight, labels, 8200, 0.1).loss, (hidden, weight))
