"""Rows added to a table whose row each names, repeated ones in float32 and in a fixed order.

Legend: T rows, V rows of the table, M model dim. A run is the entries of one row of the table among the sorted ones.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels.fused.sizes import cdiv

ROWS, COLUMNS = 32, 128  # of a tile: 32 numbers a thread of 4 warps, four loads of 16 bytes in flight in 16 bits


@triton.jit(do_not_specialize=["num_entries"])
def _kernel(
    # read and written: table [V, M]. read: sorted_rows [T] int64; order [T] int64, where each was; values [T, M]
    table_ptr, sorted_rows_ptr, order_ptr, values_ptr,
    # elements from row to row; T and M
    stride_table, stride_values, num_entries, num_columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Each row of the table plus the sum of its run, which is made in float32 and rounded once, with the row in it.

    Grid: (T, blocks of COLUMNS). A program whose entry begins a run owns the row and walks over the run, ROWS entries
    at a time; the others have nothing to do.
    """
    entry = tl.program_id(0).to(tl.int64)
    row = tl.load(sorted_rows_ptr + entry)
    if tl.load(sorted_rows_ptr + entry - 1, mask=entry > 0, other=-1) == row:
        return
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < num_columns
    total = tl.zeros([ROWS, COLUMNS], tl.float32)  # of each of the ROWS lanes: no exchange between threads in the loop
    entries = entry + tl.arange(0, ROWS)
    num_found = ROWS
    while num_found == ROWS:
        of_run = tl.load(sorted_rows_ptr + entries, mask=entries < num_entries, other=-1) == row
        source = tl.load(order_ptr + entries, mask=of_run, other=0)
        pointers = values_ptr + source[:, None] * stride_values + columns[None, :]
        total += tl.load(pointers, mask=of_run[:, None] & inside[None, :], other=0.0).to(tl.float32)
        num_found = tl.sum(of_run.to(tl.int32), 0)
        entries += ROWS
    row_ptr = table_ptr + row * stride_table + columns
    before = tl.load(row_ptr, mask=inside, other=0.0).to(tl.float32)
    tl.store(row_ptr, (before + tl.sum(total, 0)).to(table_ptr.dtype.element_ty), mask=inside)


def add_rows_(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """table[rows] += values, where rows may repeat; on the device alone.

    Args:
        table: [V, M], float32 or 16 bits; a row is contiguous.
        rows: [T] int64 in [0, V).
        values: [T, M], a row is contiguous.
    """
    num_entries, num_columns = values.shape
    if not values.numel():
        return
    sorted_rows, order = torch.sort(rows, stable=True)
    _kernel[(num_entries, cdiv(num_columns, COLUMNS))](
        table, sorted_rows, order, values, table.stride(0), values.stride(0), num_entries, num_columns,
        ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
    )  # fmt: skip
