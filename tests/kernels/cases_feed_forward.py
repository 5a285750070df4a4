"""Cases of the feed-forward sub-layer."""

from collections.abc import Iterator

import torch
from kernel_cases import DROPOUT, Case, Launch, model_width, normal, parameter

from deltalm_ds.kernels.feed_forward import feed_forward


def cases(dropped: bool) -> list[Case]:
    """Odd, prime and empty sizes, and activations where erf is exactly 1 or -1."""
    p = DROPOUT if dropped else 0.0
    cases = []
    for num_tokens, width, inner in [(1, 16, 64), (7, 5, 11), (3, 37, 300), (9, 64, 257), (0, 4, 8)]:
        inputs = (
            normal(num_tokens, width),
            normal(inner, width, seed=1) * width**-0.5,
            normal(inner, seed=2),
            normal(width, inner, seed=3) * inner**-0.5,
            normal(width, seed=4),
        )
        cases.append(Case(f"{num_tokens}x{width}x{inner}-{p}", lambda *x: feed_forward(*x, p), inputs))
    # erf is 1 or -1 on both sides, and the density 0
    x, weight_in, bias_in, weight_out, bias_out = cases[1].inputs
    extreme = (x * 1000, weight_in, bias_in, weight_out / 1000, bias_out)
    cases.append(Case(f"extreme-{p}", lambda *x: feed_forward(*x, p), extreme))
    return cases


def launches(dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """Without and with dropout."""
    width = model_width(is_wide)
    shapes = [(3, width), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    inputs = tuple(parameter(*shape, dtype=dtype) for shape in shapes)
    for p in (0.0, 0.1):
        yield Launch(f"dropout {p}", lambda p=p: feed_forward(*inputs, p), inputs)
