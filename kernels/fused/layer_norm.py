"""Dropout, residual and LayerNorm in one pass over memory, forward and backward.

Legend: T tokens (rows), M model dim (columns). Statistics and sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dropout_mask import scale, threshold
from deltalm_ds.kernels.fused.philox import keep_mask
from deltalm_ds.kernels.fused.sizes import cdiv, next_power_of_2
from deltalm_ds.kernels.fused.strip_sums import add_strips

# Rows are summed in so many strips at most, on any device: the sums' order is always the same. An A100 holds as many
# programs of the backward at once (108 SMs, 8 each by registers), an H100 a fifth more: none waits for a second wave.
NUM_STRIPS = 864
TILE = 1024  # elements a program holds at once, where rows are not longer


@triton.jit
def _load_sum(
    x_ptr, residual_ptr, seed_ptr, rows, columns, at, inside, drop_threshold, drop_scale, HAS_RESIDUAL, HAS_DROPOUT
):
    """residual + dropout(x) of a tile [ROWS, COLUMNS], and which of its elements stay.

    at: places of the tile in [T, M]; inside: which of them exist.
    """
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    keep = inside
    if HAS_DROPOUT:
        groups = tl.arange(0, columns.shape[0] // 16)
        keep = keep_mask(seed_ptr, rows, groups, 0, drop_threshold)
        x = tl.where(keep, x * drop_scale, 0.0)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + at, mask=inside, other=0.0).to(tl.float32)
    return x, keep


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    # read: x, residual [T, M], contiguous; weight, bias [M]; seed [1] int64
    x_ptr, residual_ptr, weight_ptr, bias_ptr, seed_ptr,
    # written: y [T, M]; mean and reciprocal deviation of each row, [T] float32
    y_ptr, mean_ptr, rstd_ptr,
    # T, M; the bytes below which elements fall, and the scale of the others
    num_rows, num_columns, eps, drop_threshold, drop_scale,
    HAS_RESIDUAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = LayerNorm(residual + dropout(x)). Grid: (row tiles,); a program owns ROWS whole rows, COLUMNS ≥ M."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    at = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    x, _ = _load_sum(
        x_ptr, residual_ptr, seed_ptr, rows, columns, at, inside, drop_threshold, drop_scale, HAS_RESIDUAL, HAS_DROPOUT
    )
    mean = tl.sum(x, 1) / num_columns
    centred = tl.where(inside, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / num_columns + eps)
    weight = tl.load(weight_ptr + columns, mask=columns < num_columns, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < num_columns, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    tl.store(y_ptr + at, y, mask=inside)
    tl.store(mean_ptr + rows, mean, mask=rows < num_rows)
    tl.store(rstd_ptr + rows, rstd, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    # read: the gradient of y [T, M]; x, residual [T, M]; weight [M]; seed [1] int64; mean, rstd [T] float32
    grad_ptr, x_ptr, residual_ptr, weight_ptr, seed_ptr, mean_ptr, rstd_ptr,
    # written: the gradient of the sum, which is residual's, [T, M]; that of x [T, M], where elements are dropped
    grad_sum_ptr, grad_x_ptr,
    # written: each strip's gradients of weight and bias, [2, strips, M] float32
    strip_sums_ptr,
    # T, M; the bytes below which elements fall, and the scale of the others
    num_rows, num_columns, drop_threshold, drop_scale,
    HAS_RESIDUAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of x and residual, and sums for those of weight and bias.

    Grid: (strips,). A program owns every strips-th tile of ROWS whole rows, and two rows of strip_sums, so that no two
    programs add to the same number.
    """
    strip, num_strips = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, COLUMNS)
    weight = tl.load(weight_ptr + columns, mask=columns < num_columns, other=0.0).to(tl.float32)
    grad_weight = tl.zeros([COLUMNS], tl.float32)
    grad_bias = tl.zeros([COLUMNS], tl.float32)
    for first_row in range(strip * ROWS, num_rows, num_strips * ROWS):
        rows = first_row + tl.arange(0, ROWS)
        inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
        at = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
        x, keep = _load_sum(
            x_ptr, residual_ptr, seed_ptr, rows, columns, at, inside, drop_threshold, drop_scale,
            HAS_RESIDUAL, HAS_DROPOUT,
        )  # fmt: skip
        mean = tl.load(mean_ptr + rows, mask=rows < num_rows, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < num_rows, other=0.0)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        normed = tl.where(inside, (x - mean[:, None]) * rstd[:, None], 0.0)
        grad_weight += tl.sum(grad * normed, 0)
        grad_bias += tl.sum(grad, 0)
        grad_normed = grad * weight[None, :]
        along_mean = tl.sum(grad_normed, 1) / num_columns
        along_normed = tl.sum(grad_normed * normed, 1) / num_columns
        grad_sum = (grad_normed - along_mean[:, None] - normed * along_normed[:, None]) * rstd[:, None]
        tl.store(grad_sum_ptr + at, grad_sum, mask=inside)
        if HAS_DROPOUT:
            tl.store(grad_x_ptr + at, tl.where(keep, grad_sum * drop_scale, 0.0), mask=inside)
    at_strip = strip_sums_ptr + strip * num_columns + columns
    tl.store(at_strip, grad_weight, mask=columns < num_columns)
    tl.store(at_strip + num_strips * num_columns, grad_bias, mask=columns < num_columns)


def _tile(num_columns: int) -> dict[str, int]:
    """Tile and warps of both kernels, for rows of any width."""
    columns = max(16, next_power_of_2(num_columns))  # a whole row: its mean is made inside one program
    rows = max(1, TILE // columns)  # short rows share a program, so that it has work for its threads
    # a row of a model is one warp's: 32 elements a thread, sums without barriers, and one Philox call for 16 elements
    # (in four warps two threads make each; the backward then takes 1.4 times as many instructions)
    num_warps = min(max(rows * columns // 1024, 1), 16)
    return {"ROWS": rows, "COLUMNS": columns, "num_warps": num_warps}


def _forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """y [T, M], and mean and reciprocal deviation of each row, [T] float32. x, residual: [T, M], contiguous."""
    num_rows, num_columns = x.shape
    y = torch.empty_like(x)
    mean, rstd = (x.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    tile = _tile(num_columns)
    _forward_kernel[(cdiv(num_rows, tile["ROWS"]),)](
        x, residual, weight, bias, seed, y, mean, rstd, num_rows, num_columns, eps, threshold(p), scale(p),
        HAS_RESIDUAL=residual is not None, HAS_DROPOUT=seed is not None, **tile,
    )  # fmt: skip
    return y, mean, rstd


def _forward_shapes(x, residual, weight, bias, eps, p, seed):
    statistics = x.new_empty(len(x), dtype=torch.float32)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _backward(
    grad: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of residual (the sum's), x (empty where nothing is dropped: the same), weight and bias ([2, M])."""
    num_rows, num_columns = x.shape
    tile = _tile(num_columns)
    num_strips = min(NUM_STRIPS, cdiv(num_rows, tile["ROWS"]))
    grad_sum = torch.empty_like(x)
    grad_x = torch.empty_like(x) if seed is not None else x.new_empty(0)
    strip_sums = x.new_empty(2, num_strips, num_columns, dtype=torch.float32)
    _backward_kernel[(num_strips,)](
        grad, x, residual, weight, seed, mean, rstd, grad_sum, grad_x, strip_sums,
        num_rows, num_columns, threshold(p), scale(p),
        HAS_RESIDUAL=residual is not None, HAS_DROPOUT=seed is not None, **tile,
    )  # fmt: skip
    return grad_sum, grad_x, add_strips(strip_sums, weight.dtype)


def _backward_shapes(grad, x, residual, weight, mean, rstd, p, seed):
    grad_x = torch.empty_like(x) if seed is not None else x.new_empty(0)
    return torch.empty_like(x), grad_x, weight.new_empty(2, len(weight))


def _setup_context(ctx, inputs, output):
    x, residual, weight, _bias, _eps, ctx.p, seed = inputs
    _y, mean, rstd = output
    ctx.save_for_backward(x, residual, weight, mean, rstd, seed)


def _gradients(ctx, grad, _grad_mean, _grad_rstd):
    if grad is None:
        return (None,) * 7
    x, residual, weight, mean, rstd, seed = ctx.saved_tensors
    grad_sum, grad_x, of_parameters = _BACKWARD(grad.contiguous(), x, residual, weight, mean, rstd, ctx.p, seed)
    grad_x = grad_sum if seed is None else grad_x
    return grad_x, grad_sum if residual is not None else None, *of_parameters.unbind(), None, None, None


_BACKWARD = CustomOp("dropout_add_layer_norm_backward", _backward, _backward_shapes)
_FORWARD = CustomOp("dropout_add_layer_norm", _forward, _forward_shapes, _setup_context, _gradients)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """LayerNorm(residual + dropout(x)) over the last axis; see `deltalm_ds.kernels.reference`.

    Args:
        x: [..., M].
        residual: the shape of x, or None.
        weight: [M].
        bias: [M].
        eps: added to the variance.
        p: rate of dropout on x.
        seed: [1] int64, of the mask; None where nothing is dropped.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    rows_of_residual = None if residual is None else residual.reshape(rows.shape).contiguous()
    return _FORWARD(rows, rows_of_residual, weight, bias, eps, p, seed)[0].view(x.shape)
