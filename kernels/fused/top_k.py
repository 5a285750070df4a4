"""The best tokens of each row of logits and their log p: one pass over memory, then a look at a few blocks.

Legend: N rows, V vocabulary, C candidates. A block is BLOCK neighbouring logits, a tile the blocks of one program.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.fused.sizes import cdiv, next_power_of_2

BLOCK = 128  # logits that stand for each other by their largest: few enough maxima, and little to read again
TILE = 4096  # logits of a program: 16 a thread of its 8 warps
LOWEST = tl.constexpr(-1e30)  # below any logit, and yet a difference of two such is no nan
LOWEST_KEY = tl.constexpr(-(2**63))


@triton.jit
def _allowed(x, columns, row, banned_ptr, num_banned, only_ptr, HAS_ONLY: tl.constexpr):
    """x, -inf where a token must not come.

    x: logits of a row at `columns`; banned_ptr: [N, num_banned] int64; only_ptr: [N] int64.
    """
    allowed = columns >= 0
    for i in range(num_banned):
        allowed = allowed & (columns != tl.load(banned_ptr + row * num_banned + i))
    if HAS_ONLY:
        only = tl.load(only_ptr + row)
        allowed = tl.where(only >= 0, columns == only, allowed)
    return tl.where(allowed, x, float("-inf"))


@triton.jit
def _sort_keys(x, index):
    """int64, all different: ordered by value and, among equal ones, by falling index."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # the sum makes -0 into 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats are ordered the wrong way round
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit(do_not_specialize=["num_banned"])
def _tile_kernel(
    # read: logits [N, V]; banned [N, num_banned] int64; only [N] int64
    logits_ptr, banned_ptr, only_ptr,
    # written, float32: maxima of allowed logits [N, tiles · TILE / BLOCK]; highest logit and Σ exp of it [N, tiles]
    maxima_ptr, highest_ptr, total_ptr,
    # elements from row to row of logits; V; how many of each row
    stride_row, num_columns, num_banned, num_tiles,
    HAS_ONLY: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The maximum of every block, of what is allowed, and what the log-sum-exp is made of, of everything.

    Grid: (N, tiles). A program owns TILE neighbouring logits of a row.
    """
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tile * TILE + tl.arange(0, TILE)
    if (tile + 1) * TILE <= num_columns:  # without a mask loads are 16 bytes wide
        x = tl.load(logits_ptr + row * stride_row + columns).to(tl.float32)
    else:
        inside = columns < num_columns
        x = tl.load(logits_ptr + row * stride_row + columns, mask=inside, other=float("-inf")).to(tl.float32)
    highest = tl.maximum(tl.max(x, 0), LOWEST)
    tl.store(highest_ptr + row * num_tiles + tile, highest)
    tl.store(total_ptr + row * num_tiles + tile, tl.sum(tl.exp(x - highest), 0))
    x = _allowed(x, columns, row, banned_ptr, num_banned, only_ptr, HAS_ONLY)
    blocks = tile * (TILE // BLOCK) + tl.arange(0, TILE // BLOCK)
    maxima = tl.max(tl.reshape(x, [TILE // BLOCK, BLOCK]), 1)
    tl.store(maxima_ptr + row * num_tiles * (TILE // BLOCK) + blocks, maxima)


@triton.jit(do_not_specialize=["num_banned", "num_candidates"])
def _row_kernel(
    # read: logits [N, V]; banned [N, num_banned] int64; only [N] int64
    logits_ptr, banned_ptr, only_ptr,
    # read, as `_tile_kernel` wrote them: maxima [N, blocks]; highest, total [N, tiles]
    maxima_ptr, highest_ptr, total_ptr,
    # written, best first: scores [N, C] float32; tokens [N, C] int64
    scores_ptr, tokens_ptr,
    # elements from row to row of logits; V; how many of each row
    stride_row, num_columns, num_banned, num_tiles, num_blocks, num_candidates,
    # TILES, BLOCKS, CANDIDATES: the numbers of them, rounded up to powers of two
    HAS_ONLY: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, BLOCKS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The best tokens of a row and their log p: they are all in the C blocks with the largest maxima.

    Grid: (N,). A program owns a row, and reads only C · BLOCK logits of it.
    """
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)
    maxima = tl.load(maxima_ptr + row * num_blocks + blocks, mask=blocks < num_blocks, other=0.0)
    keys = tl.where(blocks < num_blocks, _sort_keys(maxima, blocks), LOWEST_KEY)
    candidates = tl.arange(0, CANDIDATES)
    chosen = tl.zeros([CANDIDATES], tl.int32)
    for i in range(num_candidates):
        best = tl.max(keys, 0)
        chosen = tl.where(candidates == i, (0x7FFFFFFF - (best & 0x7FFFFFFF)).to(tl.int32), chosen)
        keys = tl.where(keys == best, LOWEST_KEY, keys)

    columns = chosen[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]  # [CANDIDATES, BLOCK]
    # a block that is chosen when none are left has number 2^31 - 1: its columns are out of range
    inside = (candidates[:, None] < num_candidates) & (chosen[:, None] < num_blocks) & (columns < num_columns)
    x = tl.load(logits_ptr + row * stride_row + columns, mask=inside, other=0.0).to(tl.float32)
    x = _allowed(x, columns, row, banned_ptr, num_banned, only_ptr, HAS_ONLY)
    keys = tl.where(inside, _sort_keys(x, columns), LOWEST_KEY)

    tiles = tl.arange(0, TILES)
    highest = tl.load(highest_ptr + row * num_tiles + tiles, mask=tiles < num_tiles, other=LOWEST)
    total = tl.load(total_ptr + row * num_tiles + tiles, mask=tiles < num_tiles, other=0.0)
    row_highest = tl.max(highest, 0)
    log_sum_exp = row_highest + tl.log(tl.sum(total * tl.exp(highest - row_highest), 0))
    for i in range(num_candidates):
        best = tl.max(tl.max(keys, 1), 0)
        ordered = (best >> 32).to(tl.int32)
        value = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
        tl.store(tokens_ptr + row * num_candidates + i, 0x7FFFFFFF - (best & 0x7FFFFFFF))
        tl.store(scores_ptr + row * num_candidates + i, value - log_sum_exp)
        keys = tl.where(keys == best, LOWEST_KEY, keys)


def _row_top_k(logits: Tensor, num: int, banned: Tensor, only: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p [N, C] float32 and tokens [N, C] int64 of the best of each row; see `deltalm_ds.kernels.top_k`.

    Args:
        logits: [N, V].
        num: C, at most V.
        banned: [N, any number] int64.
        only: [N] int64 or None.
    """
    num_rows, num_columns = logits.shape
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    banned = banned.contiguous()
    num_tiles = cdiv(num_columns, TILE)
    num_blocks = num_tiles * (TILE // BLOCK)
    maxima, highest, total, scores = (
        logits.new_empty(num_rows, size, dtype=torch.float32) for size in (num_blocks, num_tiles, num_tiles, num)
    )
    tokens = banned.new_empty(num_rows, num)
    sizes = (logits.stride(0), num_columns, banned.shape[1], num_tiles)
    _tile_kernel[(num_rows, num_tiles)](
        logits, banned, only, maxima, highest, total, *sizes,
        HAS_ONLY=only is not None, BLOCK=BLOCK, TILE=TILE, num_warps=8,
    )  # fmt: skip
    _row_kernel[(num_rows,)](
        logits, banned, only, maxima, highest, total, scores, tokens, *sizes, num_blocks, num,
        HAS_ONLY=only is not None, BLOCK=BLOCK, TILES=next_power_of_2(num_tiles),
        BLOCKS=next_power_of_2(num_blocks), CANDIDATES=next_power_of_2(num), num_warps=8,
    )  # fmt: skip
    return scores, tokens


def _shapes(logits, num, banned, only):
    scores = logits.new_empty(len(logits), num, dtype=torch.float32)
    return scores, banned.new_empty(len(logits), num)


row_top_k = CustomOp("row_top_k", _row_top_k, _shapes)
