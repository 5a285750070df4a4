"""Dropout in one pass; its backward is the same pass over the gradient.

Legend: T rows (all leading dimensions), M columns (the last one).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dropout_mask import scale, threshold
from deltalm_ds.kernels.fused.philox import keep_mask
from deltalm_ds.kernels.fused.sizes import cdiv, next_power_of_2

TILE = 1024  # elements of a program: eight a thread of four warps


@triton.jit(do_not_specialize=["num_rows"])
def _kernel(
    # read: x [T, M], contiguous; seed [1] int64. written: y [T, M]
    x_ptr, seed_ptr, y_ptr,
    # T, M; the bytes below which elements fall, and the scale of the others
    num_rows, num_columns, drop_threshold, drop_scale,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = dropout(x). Grid: (row tiles, column tiles); a program owns a tile of ROWS x COLUMNS elements."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_column = tl.program_id(1) * COLUMNS
    columns = first_column + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    at = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    keep = keep_mask(seed_ptr, rows, first_column // 16 + tl.arange(0, COLUMNS // 16), 0, drop_threshold)
    tl.store(y_ptr + at, tl.where(keep, x * drop_scale, 0.0), mask=inside)


def _dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """x: [T, M], contiguous."""
    num_rows, num_columns = x.shape
    y = torch.empty_like(x)
    columns = min(max(16, next_power_of_2(num_columns)), TILE)
    rows = TILE // columns
    grid = (cdiv(num_rows, rows), cdiv(num_columns, columns))
    _kernel[grid](
        x, seed, y, num_rows, num_columns, threshold(p), scale(p), ROWS=rows, COLUMNS=columns, num_warps=4
    )  # fmt: skip
    return y


def _dropout_shapes(x, p, seed):
    return torch.empty_like(x)


def _setup_context(ctx, inputs, output):
    _x, ctx.p, seed = inputs
    ctx.save_for_backward(seed)


def _gradients(ctx, grad):
    if grad is None:
        return None, None, None
    (seed,) = ctx.saved_tensors
    return _DROPOUT(grad.contiguous(), ctx.p, seed), None, None


_DROPOUT = CustomOp("dropout", _dropout, _dropout_shapes, _setup_context, _gradients)


def dropout(x: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """x: [..., M]; without a seed nothing falls out. See `deltalm_ds.kernels.reference`."""
    if seed is None or not x.numel():
        return x
    return _DROPOUT(x.reshape(-1, x.shape[-1]).contiguous(), p, seed).view(x.shape)
