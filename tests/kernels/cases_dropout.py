"""Cases of dropout."""

from collections.abc import Iterator

import torch
from kernel_cases import DROPOUT, Case, Launch, model_width, normal, parameter

from deltalm_ds.kernels.dropout import dropout


def cases(dropped: bool) -> list[Case]:
    """Odd, prime and empty shapes of one to three axes; at rate 0 it gives back its input."""
    if not dropped:
        return []
    shapes = [(1, 1), (7,), (3, 37), (2, 3, 16), (1, 1031), (0, 4)]
    return [Case(f"{shape}", lambda x: dropout(x, DROPOUT), (normal(*shape),)) for shape in shapes]


def launches(dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """Rows of the model's width."""
    x = parameter(3, model_width(is_wide), dtype=dtype)
    yield Launch("", lambda: dropout(x, 0.1), (x,))
