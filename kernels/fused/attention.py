"""Flash attention over packed sequences, forward and backward, with dropout on the probabilities [Dao23].

Nothing quadratic is stored: the backward makes the probabilities again from each query's log-sum-exp. A program owns
one block of queries (or, for the gradients of keys and values, of keys) of one sequence and head, and no two programs
write the same element: results are deterministic.

Legend: T tokens, B sequences, H heads, D head dim. Logarithms are to base 2 inside the kernels.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.dropout_mask import scale, threshold
from deltalm_ds.kernels.fused.philox import keep_mask

MAX_HEAD_DIM = 128
LOG2_E = math.log2(math.e)


class Blocks(NamedTuple):
    """Tile of one kernel: QUERIES x KEYS, and the warps that share it."""

    queries: int
    keys: int
    num_warps: int

    def options(self) -> dict[str, int]:
        """Arguments of the launch."""
        return {"QUERIES": self.queries, "KEYS": self.keys, "num_warps": self.num_warps, "num_stages": 2}


def _blocks(q: Tensor) -> tuple[Blocks, Blocks, Blocks]:
    """Of the forward, of the gradients of keys and values, and of the gradient of queries.

    FACTS §7, reduced where the compiler would keep values outside the registers.
    """
    is_narrow = q.shape[2] <= 64
    warps = 4 if is_narrow else 8
    if q.dtype == torch.float32:  # twice the registers an element
        return Blocks(32, 32, warps), Blocks(32, 32, 8), Blocks(32, 32, 4)
    if (dispatch.compute_capability(q.device) or (8, 0)) >= (9, 0):
        return Blocks(128, 64, 8), Blocks(32, 64, warps), Blocks(64, 64, warps)
    if is_narrow:
        return Blocks(128, 64, 8), Blocks(32, 32, 4), Blocks(64, 32, 4)
    return Blocks(128, 32, 8), Blocks(32, 32, 8), Blocks(64, 32, 8)


@triton.jit
def _find_block(cu_seqlens_ptr, num_sequences, block, SIZE: tl.constexpr, SEQUENCES: tl.constexpr):
    """Sequence and place in it of block number `block`, counting the blocks of all sequences; >= B if there is none."""
    sequence = tl.arange(0, SEQUENCES)
    inside = sequence < num_sequences
    start = tl.load(cu_seqlens_ptr + sequence, mask=inside, other=0)
    end = tl.load(cu_seqlens_ptr + sequence + 1, mask=inside, other=0)
    last = tl.cumsum((end - start + SIZE - 1) // SIZE, 0)  # number of blocks up to and including each sequence
    return tl.sum((last <= block).to(tl.int32), 0), block - tl.max(tl.where(last <= block, last, 0), 0)


@triton.jit
def _span(cu_seqlens_ptr, sequence):
    start = tl.load(cu_seqlens_ptr + sequence)
    return start, tl.load(cu_seqlens_ptr + sequence + 1) - start


@triton.jit
def _load_rows(ptr, stride_row, start, rows, num_rows, dims, HEAD_DIM: tl.constexpr):
    """[rows, dims] of one head of one sequence, zeros outside."""
    inside = (rows[:, None] < num_rows) & (dims[None, :] < HEAD_DIM)
    return tl.load(ptr + (start + rows)[:, None].to(tl.int64) * stride_row + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(ptr, stride_row, start, rows, num_rows, dims, values, HEAD_DIM: tl.constexpr):
    inside = (rows[:, None] < num_rows) & (dims[None, :] < HEAD_DIM)
    tl.store(ptr + (start + rows)[:, None].to(tl.int64) * stride_row + dims[None, :], values, mask=inside)


@triton.jit
def _visible(queries, keys, num_queries, num_keys, CAUSAL: tl.constexpr):
    """[queries, keys] bool."""
    visible = (queries[:, None] < num_queries) & (keys[None, :] < num_keys)
    if CAUSAL:
        visible = visible & (keys[None, :] <= queries[:, None])
    return visible


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, cu_q_ptr, cu_k_ptr, seed_ptr, out_ptr, log_total_ptr,
    stride_q_row, stride_q_head, stride_k_row, stride_k_head, stride_v_row, stride_v_head, stride_out_row,
    num_sequences, total_queries, scale_log2, drop_threshold, drop_scale,
    CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr, SEQUENCES: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    sequence, block = _find_block(cu_q_ptr, num_sequences, tl.program_id(0), QUERIES, SEQUENCES)
    if sequence >= num_sequences:
        return
    start_q, num_queries = _span(cu_q_ptr, sequence)
    start_k, num_keys = _span(cu_k_ptr, sequence)
    rows, dims = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, DIMS)
    q = _load_rows(q_ptr + head * stride_q_head, stride_q_row, start_q, rows, num_queries, dims, HEAD_DIM)
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, DIMS], tl.float32)
    end = tl.minimum(num_keys, (block + 1) * QUERIES) if CAUSAL else num_keys
    for start in range(0, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        k = _load_rows(k_ptr + head * stride_k_head, stride_k_row, start_k, keys, num_keys, dims, HEAD_DIM)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        # rows behind the end see keys too: without any their maximum would be no number
        scores = tl.where(_visible(rows, keys, num_queries + QUERIES, num_keys, CAUSAL), scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - higher)
        p = tl.exp2(scores - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        highest = higher
        if HAS_DROPOUT:
            groups = start // 16 + tl.arange(0, KEYS // 16)
            p = tl.where(keep_mask(seed_ptr, start_q + rows, groups, head, drop_threshold), p, 0.0)
        v = _load_rows(v_ptr + head * stride_v_head, stride_v_row, start_k, keys, num_keys, dims, HEAD_DIM)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
    total = tl.where(num_keys > 0, total, 1.0)  # without keys the result is 0
    out *= (drop_scale / total)[:, None]
    log_total = highest + tl.log2(total)
    _store_rows(out_ptr + head * HEAD_DIM, stride_out_row, start_q, rows, num_queries, dims, out, HEAD_DIM)
    tl.store(log_total_ptr + head * total_queries + start_q + rows, log_total, mask=rows < num_queries)


@triton.jit
def _grad_query_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr, cu_q_ptr, cu_k_ptr, seed_ptr, log_total_ptr, along_out_ptr, grad_q_ptr,
    stride_q_row, stride_q_head, stride_k_row, stride_k_head, stride_v_row, stride_v_head, stride_out_row,
    num_sequences, total_queries, scale_log2, softmax_scale, drop_threshold, drop_scale,
    CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr, SEQUENCES: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of queries; also stores Σ_d grad · out of each, which the other kernel needs."""
    head = tl.program_id(1)
    sequence, block = _find_block(cu_q_ptr, num_sequences, tl.program_id(0), QUERIES, SEQUENCES)
    if sequence >= num_sequences:
        return
    start_q, num_queries = _span(cu_q_ptr, sequence)
    start_k, num_keys = _span(cu_k_ptr, sequence)
    rows, dims = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, DIMS)
    q = _load_rows(q_ptr + head * stride_q_head, stride_q_row, start_q, rows, num_queries, dims, HEAD_DIM)
    out = _load_rows(out_ptr + head * HEAD_DIM, stride_out_row, start_q, rows, num_queries, dims, HEAD_DIM)
    grad = _load_rows(grad_ptr + head * HEAD_DIM, stride_out_row, start_q, rows, num_queries, dims, HEAD_DIM)
    at = head * total_queries + start_q + rows
    log_total = tl.load(log_total_ptr + at, mask=rows < num_queries, other=0.0)
    along_out = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(along_out_ptr + at, along_out, mask=rows < num_queries)
    grad_q = tl.zeros([QUERIES, DIMS], tl.float32)
    end = tl.minimum(num_keys, (block + 1) * QUERIES) if CAUSAL else num_keys
    for start in range(0, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        k = _load_rows(k_ptr + head * stride_k_head, stride_k_row, start_k, keys, num_keys, dims, HEAD_DIM)
        v = _load_rows(v_ptr + head * stride_v_head, stride_v_row, start_k, keys, num_keys, dims, HEAD_DIM)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        visible = _visible(rows, keys, num_queries, num_keys, CAUSAL)
        p = tl.exp2(tl.where(visible, scores - log_total[:, None], float("-inf")))
        grad_p = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        if HAS_DROPOUT:
            groups = start // 16 + tl.arange(0, KEYS // 16)
            keep = keep_mask(seed_ptr, start_q + rows, groups, head, drop_threshold)
            grad_p = tl.where(keep, grad_p * drop_scale, 0.0)
        grad_scores = p * (grad_p - along_out[:, None])
        grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION)
    grad_q *= softmax_scale
    _store_rows(grad_q_ptr + head * HEAD_DIM, stride_out_row, start_q, rows, num_queries, dims, grad_q, HEAD_DIM)


@triton.jit
def _grad_key_value_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, cu_q_ptr, cu_k_ptr, seed_ptr, log_total_ptr, along_out_ptr, grad_k_ptr, grad_v_ptr,
    stride_q_row, stride_q_head, stride_k_row, stride_k_head, stride_v_row, stride_v_head, stride_out_row,
    num_sequences, total_queries, scale_log2, softmax_scale, drop_threshold, drop_scale,
    CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr, SEQUENCES: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of keys; matrices are transposed, [keys, queries], as both products need them so."""
    head = tl.program_id(1)
    sequence, block = _find_block(cu_k_ptr, num_sequences, tl.program_id(0), KEYS, SEQUENCES)
    if sequence >= num_sequences:
        return
    start_q, num_queries = _span(cu_q_ptr, sequence)
    start_k, num_keys = _span(cu_k_ptr, sequence)
    keys, dims = block * KEYS + tl.arange(0, KEYS), tl.arange(0, DIMS)
    k = _load_rows(k_ptr + head * stride_k_head, stride_k_row, start_k, keys, num_keys, dims, HEAD_DIM)
    v = _load_rows(v_ptr + head * stride_v_head, stride_v_row, start_k, keys, num_keys, dims, HEAD_DIM)
    grad_k = tl.zeros([KEYS, DIMS], tl.float32)
    grad_v = tl.zeros([KEYS, DIMS], tl.float32)
    first = (block * KEYS) // QUERIES * QUERIES if CAUSAL else 0
    for start in range(first, num_queries, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        q = _load_rows(q_ptr + head * stride_q_head, stride_q_row, start_q, rows, num_queries, dims, HEAD_DIM)
        grad = _load_rows(grad_ptr + head * HEAD_DIM, stride_out_row, start_q, rows, num_queries, dims, HEAD_DIM)
        at = head * total_queries + start_q + rows
        log_total = tl.load(log_total_ptr + at, mask=rows < num_queries, other=0.0)
        along_out = tl.load(along_out_ptr + at, mask=rows < num_queries, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        visible = tl.trans(_visible(rows, keys, num_queries, num_keys, CAUSAL))
        p = tl.exp2(tl.where(visible, scores - log_total[None, :], float("-inf")))
        grad_p = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        kept_p = p
        if HAS_DROPOUT:
            groups = block * (KEYS // 16) + tl.arange(0, KEYS // 16)
            keep = tl.trans(keep_mask(seed_ptr, start_q + rows, groups, head, drop_threshold))
            kept_p = tl.where(keep, p, 0.0)
            grad_p = tl.where(keep, grad_p * drop_scale, 0.0)
        grad_v = tl.dot(kept_p.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
        grad_scores = p * (grad_p - along_out[None, :])
        grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)
    grad_k *= softmax_scale
    grad_v *= drop_scale
    _store_rows(grad_k_ptr + head * HEAD_DIM, stride_out_row, start_k, keys, num_keys, dims, grad_k, HEAD_DIM)
    _store_rows(grad_v_ptr + head * HEAD_DIM, stride_out_row, start_k, keys, num_keys, dims, grad_v, HEAD_DIM)


def _constants(q: Tensor, cu_seqlens: Tensor, causal: bool, seed: Tensor | None) -> dict[str, Any]:
    """What all three kernels are compiled for."""
    head_dim = q.shape[2]
    exact = q.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return {
        "CAUSAL": causal,
        "HAS_DROPOUT": seed is not None,
        "PRECISION": "ieee" if exact else "tf32",
        "SEQUENCES": triton.next_power_of_2(max(len(cu_seqlens) - 1, 2)),
        "HEAD_DIM": head_dim,
        "DIMS": max(16, triton.next_power_of_2(head_dim)),
    }


def _grid(num_tokens: int, cu_seqlens: Tensor, block: int, num_heads: int) -> tuple[int, int]:
    """At least the number of blocks of all sequences, without reading their lengths; the rest end at once."""
    return num_tokens // block + len(cu_seqlens) - 1, num_heads


def _strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    return *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], q.shape[1] * q.shape[2]


@torch.library.custom_op("deltalm::attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The result [Tq, H, D] and the log-sum-exp of each query's scores [H, Tq] float32, base 2."""
    num_queries, num_heads, head_dim = q.shape
    out = q.new_empty(q.shape)
    log_total = q.new_empty(num_heads, num_queries, dtype=torch.float32)
    blocks = _blocks(q)[0]
    _forward_kernel[_grid(num_queries, cu_seqlens_q, blocks.queries, num_heads)](
        q, k, v, cu_seqlens_q, cu_seqlens_k, seed, out, log_total, *_strides(q, k, v),
        len(cu_seqlens_q) - 1, num_queries, LOG2_E / math.sqrt(head_dim), threshold(p), scale(p),
        **_constants(q, cu_seqlens_q, causal, seed), **blocks.options(),
    )  # fmt: skip
    return out, log_total


@_forward.register_fake
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, p, seed):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("deltalm::attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_total: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    num_queries, num_heads, head_dim = q.shape
    softmax_scale = 1 / math.sqrt(head_dim)
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    along_out = torch.empty_like(log_total)
    constants = _constants(q, cu_seqlens_q, causal, seed)
    numbers = (len(cu_seqlens_q) - 1, num_queries, LOG2_E * softmax_scale, softmax_scale, threshold(p), scale(p))
    _, key_blocks, query_blocks = _blocks(q)
    _grad_query_kernel[_grid(num_queries, cu_seqlens_q, query_blocks.queries, num_heads)](
        q, k, v, out, grad, cu_seqlens_q, cu_seqlens_k, seed, log_total, along_out, grad_q, *_strides(q, k, v),
        *numbers, **constants, **query_blocks.options(),
    )  # fmt: skip
    _grad_key_value_kernel[_grid(len(k), cu_seqlens_k, key_blocks.keys, num_heads)](
        q, k, v, grad, cu_seqlens_q, cu_seqlens_k, seed, log_total, along_out, grad_k, grad_v, *_strides(q, k, v),
        *numbers, **constants, **key_blocks.options(),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


@_backward.register_fake
def _(grad, q, k, v, out, log_total, cu_seqlens_q, cu_seqlens_k, causal, p, seed):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    q, k, v, cu_seqlens_q, cu_seqlens_k, ctx.causal, ctx.p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, seed)


def _gradients(ctx, grad, _grad_log_total):
    *tensors, seed = ctx.saved_tensors
    return *_backward(grad.contiguous(), *tensors, ctx.causal, ctx.p, seed), None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ / √D) v within each sequence; see `deltalm_ds.kernels.reference`.

    The sequences must fill q and k: cu_seqlens end at Tq and Tk. D is at most 128.
    """
    if q.shape[2] > MAX_HEAD_DIM:
        raise ValueError(f"The fused attention has heads of at most {MAX_HEAD_DIM} dimensions, not {q.shape[2]}.")
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    return _forward(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, p, seed)[0]
