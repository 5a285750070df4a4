"""Cases of LayerNorm, alone and behind dropout and residual connection."""

from collections.abc import Iterator
from typing import Any

import torch
from kernel_cases import DROPOUT, Case, Launch, model_width, normal, parameter
from torch import Tensor

from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm, layer_norm

EPS = 1e-5


def _behind_dropout(name: str, x: Tensor, p: float, residual: Tensor | None = None, **options: Any) -> Case:
    num_columns = x.shape[-1]
    weight, bias = 1 + normal(num_columns, seed=2) / 4, normal(num_columns, seed=3)
    return Case(
        f"{name}-{'x'.join(map(str, x.shape))}-{p}",
        lambda x, residual, weight, bias: dropout_add_layer_norm(x, residual, weight, bias, EPS, p),
        (x, normal(*x.shape, seed=1) if residual is None else residual, weight, bias),
        **options,
    )


def _alone(name: str, x: Tensor, **options: Any) -> Case:
    inputs = (x, normal(x.shape[-1]), normal(x.shape[-1]))
    return Case(name, lambda x, weight, bias: layer_norm(x, weight, bias, EPS), inputs, **options)


def cases(dropped: bool) -> list[Case]:
    """Odd, prime and empty sizes, and rows whose rounding errors the norm enlarges."""
    p = DROPOUT if dropped else 0.0
    shapes = [(1, 16), (3, 37), (257, 5), (5, 768), (2, 1031), (0, 8)]
    far = {
        "loosen": 2000.0,
        "loosen_relative": 10.0,
        "why": "in float32 a mean of 1,000 leaves 2^-14 of a deviation of 1, and rstd multiplies it",
    }
    flat = {"loosen": 320.0, "why": "rstd is 1/sqrt(eps) = 316"}
    many_rows = {"loosen_relative": 3.0, "why": "PyTorch sums the gradients of weight and bias in 16 bits on a CPU"}
    # sums and means near 1,000 that bfloat16 has: PyTorch stores both in it
    sums = [torch.cat([half, -half], 1) for half in (normal(4, 32), 4 * normal(4, 32, seed=1).round())]
    return [
        *(_behind_dropout("normal", normal(*shape), p, **(many_rows if shape[0] > 100 else {})) for shape in shapes),
        _behind_dropout("far-from-zero", sums[0] + 1000, p, sums[1], **far),
        _behind_dropout("one-column", normal(2, 1), p, **flat),
        _alone("alone-equal-rows", torch.full((2, 3, 40), 0.5, dtype=torch.float64), **flat),
        _alone("alone", normal(3, 33)),
    ]


def launches(dtype: torch.dtype, is_wide: bool) -> Iterator[Launch]:
    """Alone, and behind a residual connection without and with dropout."""
    width = model_width(is_wide)
    x, residual = (parameter(3, width, dtype=dtype) for _ in range(2))
    weight, bias = (parameter(width, dtype=dtype) for _ in range(2))
    yield Launch("alone", lambda: layer_norm(x, weight, bias, EPS), (x, weight, bias))
    for p in (0.0, 0.1):
        yield Launch(
            f"behind dropout {p}",
            lambda p=p: dropout_add_layer_norm(x, residual, weight, bias, EPS, p),
            (x, residual, weight, bias),
        )
