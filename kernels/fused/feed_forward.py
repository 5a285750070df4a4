"""The feed-forward sub-layer: bias, exact GELU and dropout in one pass between the two matrix products.

Only the first product is kept for the backward, which makes the activation again while it makes its gradient.
Legend: T tokens, M model dim, F ffn dim.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dropout_mask import scale, threshold
from deltalm_ds.kernels.fused.philox import keep_mask
from deltalm_ds.kernels.fused.sizes import cdiv
from deltalm_ds.kernels.fused.strip_sums import add_strips

ROWS, COLUMNS = 4, 256  # tile of a program: eight elements a thread of four warps
NUM_STRIPS = 64  # strips of rows in which the bias's gradient is summed, on any device


@triton.jit
def _normal_cdf(x):
    """Φ(x), exactly (erf)."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _tile(first_row, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Numbers of rows [ROWS] and columns [COLUMNS] of a tile; which elements exist, and their places in [T, F]."""
    rows = first_row + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
    return rows, columns, inside, rows[:, None].to(tl.int64) * num_columns + columns[None, :]


@triton.jit
def _groups(COLUMNS: tl.constexpr):
    """Numbers of the blocks of 16 columns that this program's columns are, as `keep_mask` wants them."""
    return tl.program_id(1) * (COLUMNS // 16) + tl.arange(0, COLUMNS // 16)


@triton.jit(do_not_specialize=["num_rows"])
def _forward_kernel(
    # read: hidden [T, F], the first product; bias [F]; seed [1] int64. written: y [T, F]
    hidden_ptr, bias_ptr, seed_ptr, y_ptr,
    # T, F; the bytes below which elements fall, and the scale of the others
    num_rows, num_columns, drop_threshold, drop_scale,
    HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """y = dropout(GELU(hidden + bias)). Grid: (row tiles, column tiles); a program owns a tile of ROWS x COLUMNS."""
    rows, columns, inside, at = _tile(tl.program_id(0) * ROWS, num_rows, num_columns, ROWS, COLUMNS)
    bias = tl.load(bias_ptr + columns, mask=columns < num_columns, other=0.0).to(tl.float32)
    hidden = tl.load(hidden_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias[None, :]
    y = hidden * _normal_cdf(hidden)
    if HAS_DROPOUT:
        y = tl.where(keep_mask(seed_ptr, rows, _groups(COLUMNS), 0, drop_threshold), y * drop_scale, 0.0)
    tl.store(y_ptr + at, y, mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _backward_kernel(
    # read: the gradient of y [T, F]; hidden [T, F]; bias [F]; seed [1] int64
    grad_ptr, hidden_ptr, bias_ptr, seed_ptr,
    # written: activation [T, F], y once more; grad_hidden [T, F]; strip_sums [strips, F] float32
    activation_ptr, grad_hidden_ptr, strip_sums_ptr,
    # T, F; the bytes below which elements fall, and the scale of the others
    num_rows, num_columns, drop_threshold, drop_scale,
    HAS_DROPOUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The activation again, the gradient of hidden, and sums of it for the bias.

    Grid: (strips, column tiles). A program owns COLUMNS columns of every strips-th tile of ROWS rows, and one row of
    strip_sums, so that no two programs add to the same number.
    """
    strip, num_strips = tl.program_id(0), tl.num_programs(0)
    own_columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    bias = tl.load(bias_ptr + own_columns, mask=own_columns < num_columns, other=0.0).to(tl.float32)
    grad_bias = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first_row in range(strip * ROWS, num_rows, num_strips * ROWS):
        rows, _, inside, at = _tile(first_row, num_rows, num_columns, ROWS, COLUMNS)
        hidden = tl.load(hidden_ptr + at, mask=inside, other=0.0).to(tl.float32) + bias[None, :]  # [ROWS, COLUMNS]
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        cdf = _normal_cdf(hidden)
        activation = hidden * cdf
        if HAS_DROPOUT:
            keep = keep_mask(seed_ptr, rows, _groups(COLUMNS), 0, drop_threshold)
            activation = tl.where(keep, activation * drop_scale, 0.0)
            grad = tl.where(keep, grad * drop_scale, 0.0)
        density = 0.3989422804014327 * tl.exp(-0.5 * hidden * hidden)
        grad_hidden = grad * (cdf + hidden * density)
        tl.store(activation_ptr + at, activation, mask=inside)
        tl.store(grad_hidden_ptr + at, grad_hidden, mask=inside)
        grad_bias += grad_hidden
    tl.store(strip_sums_ptr + strip * num_columns + own_columns, tl.sum(grad_bias, 0), mask=own_columns < num_columns)


def _forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The result [T, M], and the first product [T, F] before its bias."""
    hidden = x @ weight_in.T
    num_rows, num_columns = hidden.shape
    activation = torch.empty_like(hidden)
    _forward_kernel[(cdiv(num_rows, ROWS), cdiv(num_columns, COLUMNS))](
        hidden, bias_in, seed, activation, num_rows, num_columns, threshold(p), scale(p),
        HAS_DROPOUT=seed is not None, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    return torch.addmm(bias_out, activation, weight_out.T), hidden


def _forward_shapes(x, weight_in, bias_in, weight_out, bias_out, p, seed):
    return x.new_empty(len(x), len(weight_out)), x.new_empty(len(x), len(weight_in))


def _backward(
    grad: Tensor,
    x: Tensor,
    hidden: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight_in, bias_in, weight_out, bias_out."""
    num_rows, num_columns = hidden.shape
    num_strips = min(NUM_STRIPS, cdiv(num_rows, ROWS))
    grad_activation = grad @ weight_out
    activation, grad_hidden = torch.empty_like(hidden), torch.empty_like(hidden)
    strip_sums = hidden.new_empty(1, num_strips, num_columns, dtype=torch.float32)
    _backward_kernel[(num_strips, cdiv(num_columns, COLUMNS))](
        grad_activation, hidden, bias_in, seed, activation, grad_hidden, strip_sums,
        num_rows, num_columns, threshold(p), scale(p),
        HAS_DROPOUT=seed is not None, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
    return (
        grad_hidden @ weight_in,
        grad_hidden.T @ x,
        add_strips(strip_sums, bias_in.dtype)[0],
        grad.T @ activation,
        grad.sum(0),
    )


def _backward_shapes(grad, x, hidden, weight_in, bias_in, weight_out, p, seed):
    likes = (x, weight_in, bias_in, weight_out)
    return *(torch.empty_like(like) for like in likes), grad.new_empty(grad.shape[1])


def _setup_context(ctx, inputs, output):
    x, weight_in, bias_in, weight_out, _bias_out, ctx.p, seed = inputs
    _y, hidden = output
    ctx.save_for_backward(x, hidden, weight_in, bias_in, weight_out, seed)


def _gradients(ctx, grad, _grad_hidden):
    if grad is None:
        return (None,) * 7
    x, hidden, weight_in, bias_in, weight_out, seed = ctx.saved_tensors
    return *_BACKWARD(grad.contiguous(), x, hidden, weight_in, bias_in, weight_out, ctx.p, seed), None, None


_BACKWARD = CustomOp("feed_forward_backward", _backward, _backward_shapes)
_FORWARD = CustomOp("feed_forward", _forward, _forward_shapes, _setup_context, _gradients)


def feed_forward(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, p: float, seed: Tensor | None
) -> Tensor:
    """dropout(GELU(x W_inᵀ + b_in)) W_outᵀ + b_out; see `deltalm_ds.kernels.reference`.

    Args:
        x: [T, M].
        weight_in: [F, M].
        bias_in: [F].
        weight_out: [M, F].
        bias_out: [M].
        p: rate of dropout on the activation.
        seed: [1] int64, of the mask; None where nothing is dropped.
    """
    return _FORWARD(x, weight_in, bias_in, weight_out, bias_out, p, seed)[0]
