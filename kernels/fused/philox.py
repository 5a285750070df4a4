"""Dropout masks inside Triton kernels: one Philox call for 16 elements, as `deltalm_ds.kernels.dropout_mask` says."""

import triton
import triton.language as tl


@triton.jit
def keep_mask(seed_ptr, rows, groups, plane, threshold):
    """True where an element stays.

    seed_ptr: [1] int64. rows: [R] int32; groups: [G] int32, numbers of the blocks of 16 columns; plane: the head.
    threshold: bytes below it fall out. Returns [R, 16 G] of consecutive columns.
    """
    zero = tl.zeros([rows.shape[0], groups.shape[0]], tl.int32)
    seed = tl.load(seed_ptr)
    w0, w1, w2, w3 = tl.philox(seed, zero + groups[None, :], zero + rows[:, None], zero + plane, zero)
    words = _interleave(w0, w1, w2, w3)  # [R, 4 G], four bytes each
    return _interleave(
        (words & 0xFF) >= threshold,
        ((words >> 8) & 0xFF) >= threshold,
        ((words >> 16) & 0xFF) >= threshold,
        (words >> 24) >= threshold,
    )


@triton.jit
def _interleave(a, b, c, d):
    """Four [R, C] -> [R, 4 C]: a₀ b₀ c₀ d₀ a₁ b₁ …"""
    stacked = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(stacked, [a.shape[0], a.shape[1] * 4])
