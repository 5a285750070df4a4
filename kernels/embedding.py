"""Every use of a table that source, target and output layer share, as one op with one gradient.

Legend: T tokens, M model dim, V rows of the table.
"""

import torch
from torch import Tensor

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dispatch import Op, implementation


def shared_embedding(table: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
    """The table itself, for the output layer, and its rows of each of `tokens`.

    Used apart, each would give a dense [V, M] gradient for autograd to sum. Here the rows' gradients are added to that
    of the output layer in place: a gigabyte less to make, read and write for each at a vocabulary of 250k. Gradients of
    a token's rows are summed in float32 at least, in a fixed order, and rounded once, with the output layer's in it.

    Args:
        table: [V, M]. tokens: [T] int64 each.

    Returns:
        (table [V, M], rows [T, M] of each).
    """
    return implementation(OP, table)(table, *tokens)


def _torch(table: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
    return _SharedEmbedding.apply(False, table, *tokens)


def _triton(table: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
    return _SharedEmbedding.apply(True, table, *tokens)


OP = Op(torch=_torch, triton=_triton, reference=reference.shared_embedding)


class _SharedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, is_fused: bool, table: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tokens)
        ctx.is_fused, ctx.table_shape = is_fused, table.shape
        return (table.view_as(table), *(table.index_select(0, part) for part in tokens))

    @staticmethod
    def backward(ctx, grad_table: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        used = [(part, grad) for part, grad in zip(ctx.saved_tensors, grads, strict=True) if grad is not None]
        if not used:
            return None, grad_table, *(None for _ in grads)
        tokens, values = (torch.cat(parts) for parts in zip(*used, strict=True))
        if grad_table is None:
            grad_table = values.new_zeros(ctx.table_shape)
        grad_table = grad_table.contiguous()  # a copy if it is broadcast, as the gradient of a sum
        _ADD_ROWS_(grad_table, tokens, values, ctx.is_fused)
        return None, grad_table, *(None for _ in grads)


# PyTorch reads a custom op's schema from its annotations; its shape function must have the same parameters.
def _add_rows_(table: Tensor, rows: Tensor, values: Tensor, is_fused: bool) -> None:
    """table[rows] += values, where rows may repeat. table: [V, M]; rows: [T]; values: [T, M]."""
    if is_fused:
        from deltalm_ds.kernels.fused.embedding import add_rows_

        return add_rows_(table, rows, values)
    unique, place = torch.unique(rows, return_inverse=True)  # on a GPU the host waits for their number
    wide = torch.promote_types(values.dtype, torch.float32)
    sums, values = values.new_zeros(len(unique), values.shape[1], dtype=wide), values.to(wide)
    if values.device.type == "cpu":
        sums.index_add_(0, place, values)
    else:
        sums.index_put_((place,), values, accumulate=True)  # sorts, where index_add_ would use atomics
    table[unique] = (table[unique] + sums).to(table.dtype)


def _no_shapes(table, rows, values, is_fused):
    return None


_ADD_ROWS_ = CustomOp("add_rows_", _add_rows_, _no_shapes, mutates=("table",))
