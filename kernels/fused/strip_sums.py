"""Sums over rows, in two passes whose order no device changes: strips of rows, then over the strips.

A kernel that walks over strips of rows leaves one float32 sum of each; one launch adds them up and rounds once.
Legend: K sums beside one another, C columns.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels.fused.sizes import cdiv

STRIPS, COLUMNS = 256, 16  # tile of a program: 64 bytes of a row, and many programs where columns are few


@triton.jit(do_not_specialize=["num_strips"])
def _add_strips_kernel(
    # read: sums of strips [K, strips, C] float32. written: total [K, C]
    strip_sums_ptr, total_ptr,
    # strips, C
    num_strips, num_columns,
    STRIPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Grid: (column tiles, K)."""
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1).to(tl.int64) * num_strips
    sums = tl.zeros([STRIPS, COLUMNS], tl.float32)
    for first_strip in range(0, num_strips, STRIPS):
        strips = first_strip + tl.arange(0, STRIPS)
        inside = (strips[:, None] < num_strips) & (columns[None, :] < num_columns)
        at = (first + strips[:, None]) * num_columns + columns[None, :]
        sums += tl.load(strip_sums_ptr + at, mask=inside, other=0.0)
    tl.store(total_ptr + tl.program_id(1) * num_columns + columns, tl.sum(sums, 0), mask=columns < num_columns)


def add_strips(strip_sums: Tensor, dtype: torch.dtype) -> Tensor:
    """strip_sums [K, strips, C], float32 and contiguous, added up over the strips and then rounded: [K, C]."""
    num_sums, num_strips, num_columns = strip_sums.shape
    total = strip_sums.new_empty(num_sums, num_columns, dtype=dtype)
    _add_strips_kernel[(cdiv(num_columns, COLUMNS), num_sums)](
        strip_sums, total, num_strips, num_columns, STRIPS=STRIPS, COLUMNS=COLUMNS, num_warps=4
    )  # fmt: skip
    return total
