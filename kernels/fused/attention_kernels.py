"""The Triton kernels of attention, which `attention.py` launches.

Legend: T tokens, B sequences, H heads, D head dim; Tq queries and Tk keys of the batch. Of a tile: QUERIES, KEYS, and
DIMS ≥ D, a power of two. Logarithms are to base 2, as exp2 is what GPUs compute.
"""

import triton
import triton.language as tl

from deltalm_ds.kernels.fused.philox import keep_mask

SEQUENCES = tl.constexpr(512)  # whose lengths a program reads at once; a batch may have more


def _jit(function):
    """A kernel that is compiled once for batches of every size, of a given form.

    Triton would compile again for numbers that are 1 or a multiple of 16, and for tensors that begin at a multiple of
    16 bytes. Of rows and their strides that allows loads of 16 bytes, and they are the same in every batch.
    """
    return triton.jit(
        function,
        do_not_specialize=["num_sequences", "total_queries"],
        do_not_specialize_on_alignment=["cu_q_ptr", "cu_k_ptr", "seed_ptr"],
    )


@triton.jit
def _find_block(cu_seqlens_ptr, num_sequences, block, SIZE: tl.constexpr):
    """Sequence that block number `block` belongs to, and the block's place in it, which may be behind its end.

    The blocks of sequence s begin at number cu_seqlens[s] // SIZE + s: room for all of them, as for lengths a and b
    (a + b) // SIZE + 1 ≥ a // SIZE + ⌈b / SIZE⌉.

    cu_seqlens_ptr: [B + 1] int32. SIZE: tokens of a block, the last of a sequence may have fewer.
    """
    begun = 0  # sequences whose blocks begin at this one or before
    for first in tl.range(0, num_sequences, SEQUENCES, num_stages=1):
        sequence = first + tl.arange(0, SEQUENCES)
        inside = sequence < num_sequences
        start = tl.load(cu_seqlens_ptr + sequence, mask=inside, other=0)
        begun += tl.sum((inside & (start // SIZE + sequence <= block)).to(tl.int32), 0)
    sequence = begun - 1
    return sequence, block - (tl.load(cu_seqlens_ptr + sequence) // SIZE + sequence)


@triton.jit
def _span(cu_seqlens_ptr, sequence):
    """First row of a sequence, and its length. cu_seqlens_ptr: [B + 1] int32."""
    start = tl.load(cu_seqlens_ptr + sequence)
    return start, tl.load(cu_seqlens_ptr + sequence + 1) - start


@triton.jit
def _load_rows(ptr, stride_row, start, rows, num_rows, dims, HEAD_DIM: tl.constexpr):
    """[rows, dims] of one head of one sequence, zeros outside.

    ptr: that head of the first row of [T, H, D]; rows count from the sequence's `start`, and it has num_rows.
    """
    inside = (rows[:, None] < num_rows) & (dims[None, :] < HEAD_DIM)
    return tl.load(ptr + (start + rows)[:, None].to(tl.int64) * stride_row + dims[None, :], mask=inside, other=0.0)


@triton.jit
def _store_rows(ptr, stride_row, start, rows, num_rows, dims, values, HEAD_DIM: tl.constexpr):
    """Write values [rows, dims] to where `_load_rows` would read them, in the dtype of ptr."""
    inside = (rows[:, None] < num_rows) & (dims[None, :] < HEAD_DIM)
    tl.store(ptr + (start + rows)[:, None].to(tl.int64) * stride_row + dims[None, :], values, mask=inside)


@triton.jit
def _visible(queries, keys, num_queries, num_keys, CAUSAL: tl.constexpr):
    """[queries, keys] bool: both inside the sequence and, if CAUSAL, the key not behind the query."""
    visible = (queries[:, None] < num_queries) & (keys[None, :] < num_keys)
    if CAUSAL:
        visible = visible & (keys[None, :] <= queries[:, None])
    return visible


@_jit
def forward_kernel(
    # read: q [Tq, H, D]; k, v [Tk, H, D]; cumulative lengths of queries and keys, [B + 1] int32 each; seed [1] int64
    q_ptr, k_ptr, v_ptr, cu_q_ptr, cu_k_ptr, seed_ptr,
    # written: out [Tq, H, D]; log_total [H, Tq] float32
    out_ptr, log_total_ptr,
    # elements from token to token (row) and from head to head; out is contiguous
    stride_q_row, stride_q_head, stride_k_row, stride_k_head, stride_v_row, stride_v_head, stride_out_row,
    # B, Tq; log2(e) / √D; and of dropout the bytes below which elements fall, and the scale of the others
    num_sequences, total_queries, scale_log2, drop_threshold, drop_scale,
    # DIMS ≥ HEAD_DIM is a power of two; the tile is QUERIES x KEYS; PRECISION of float32 products
    CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """out = dropout(softmax(q kᵀ / √D)) v, and log_total, the log-sum-exp of each query's scores.

    Grid: (blocks of QUERIES queries, of all sequences together, H). A program owns a block of queries of one head, and
    walks over the keys of its sequence KEYS at a time with a running maximum and sum, so that scores are never stored.
    """
    head = tl.program_id(1)
    sequence, block = _find_block(cu_q_ptr, num_sequences, tl.program_id(0), QUERIES)
    start_q, num_queries = _span(cu_q_ptr, sequence)
    start_k, num_keys = _span(cu_k_ptr, sequence)
    if block * QUERIES >= num_queries:
        return
    rows, dims = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, DIMS)
    q = _load_rows(q_ptr + head * stride_q_head, stride_q_row, start_q, rows, num_queries, dims, HEAD_DIM)
    # of the keys so far, in units of exp2: the largest score of each query, Σ exp2(score - highest), and Σ of it · v
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, DIMS], tl.float32)
    end = tl.minimum(num_keys, (block + 1) * QUERIES) if CAUSAL else num_keys
    for start in range(0, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        k = _load_rows(k_ptr + head * stride_k_head, stride_k_row, start_k, keys, num_keys, dims, HEAD_DIM)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2  # [QUERIES, KEYS]
        # rows behind the end see keys too: without any their maximum would be no number
        scores = tl.where(_visible(rows, keys, num_queries + QUERIES, num_keys, CAUSAL), scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp2(highest - higher)  # what the sums so far are worth under the new maximum
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


@_jit
def grad_query_kernel(
    # read: q [Tq, H, D]; k, v [Tk, H, D]; out and its gradient [Tq, H, D]
    q_ptr, k_ptr, v_ptr, out_ptr, grad_ptr,
    # read: cumulative lengths of queries and keys, [B + 1] int32 each; seed [1] int64; log_total [H, Tq] float32
    cu_q_ptr, cu_k_ptr, seed_ptr, log_total_ptr,
    # written: along_out [H, Tq] float32, Σ_d grad · out of each query; grad_q [Tq, H, D]
    along_out_ptr, grad_q_ptr,
    # elements from token to token (row) and from head to head; out and its gradient are contiguous, and the gradients
    # written have heads of HEAD_DIM elements
    stride_q_row, stride_q_head, stride_k_row, stride_k_head, stride_v_row, stride_v_head, stride_out_row,
    stride_grad_q_row,
    # B, Tq; log2(e) / √D and 1 / √D; and of dropout as in the forward
    num_sequences, total_queries, scale_log2, softmax_scale, drop_threshold, drop_scale,
    # DIMS ≥ HEAD_DIM is a power of two; the tile is QUERIES x KEYS; PRECISION of float32 products
    CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """grad_q, and along_out, which the gradients of keys and values need.

    Grid: (blocks of QUERIES queries, of all sequences together, H). A program owns a block of queries of one head, and
    makes the probabilities of KEYS keys at a time again from log_total.
    """
    head = tl.program_id(1)
    sequence, block = _find_block(cu_q_ptr, num_sequences, tl.program_id(0), QUERIES)
    start_q, num_queries = _span(cu_q_ptr, sequence)
    start_k, num_keys = _span(cu_k_ptr, sequence)
    if block * QUERIES >= num_queries:
        return
    rows, dims = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, DIMS)
    q = _load_rows(q_ptr + head * stride_q_head, stride_q_row, start_q, rows, num_queries, dims, HEAD_DIM)
    out = _load_rows(out_ptr + head * HEAD_DIM, stride_out_row, start_q, rows, num_queries, dims, HEAD_DIM)
    grad = _load_rows(grad_ptr + head * HEAD_DIM, stride_out_row, start_q, rows, num_queries, dims, HEAD_DIM)
    at = head * total_queries + start_q + rows  # places in [H, Tq]
    log_total = tl.load(log_total_ptr + at, mask=rows < num_queries, other=0.0)
    along_out = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(along_out_ptr + at, along_out, mask=rows < num_queries)
    grad_q = tl.zeros([QUERIES, DIMS], tl.float32)
    end = tl.minimum(num_keys, (block + 1) * QUERIES) if CAUSAL else num_keys
    for start in range(0, end, KEYS):
        keys = start + tl.arange(0, KEYS)
        k = _load_rows(k_ptr + head * stride_k_head, stride_k_row, start_k, keys, num_keys, dims, HEAD_DIM)
        v = _load_rows(v_ptr + head * stride_v_head, stride_v_row, start_k, keys, num_keys, dims, HEAD_DIM)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2  # [QUERIES, KEYS]
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
    _store_rows(grad_q_ptr + head * HEAD_DIM, stride_grad_q_row, start_q, rows, num_queries, dims, grad_q, HEAD_DIM)


@_jit
def grad_key_value_kernel(
    # read: q [Tq, H, D]; k, v [Tk, H, D]; the gradient of out [Tq, H, D]
    q_ptr, k_ptr, v_ptr, grad_ptr,
    # read: cumulative lengths of queries and keys, [B + 1] int32 each; seed [1] int64
    cu_q_ptr, cu_k_ptr, seed_ptr,
    # read: log_total and along_out [H, Tq] float32. written: grad_k, grad_v [Tk, H, D]
    log_total_ptr, along_out_ptr, grad_k_ptr, grad_v_ptr,
    # elements from token to token (row) and from head to head; out and its gradient are contiguous, and the gradients
    # written have heads of HEAD_DIM elements
    stride_q_row, stride_q_head, stride_k_row, stride_k_head, stride_v_row, stride_v_head, stride_out_row,
    stride_grad_k_row,
    # B, Tq; log2(e) / √D and 1 / √D; and of dropout as in the forward
    num_sequences, total_queries, scale_log2, softmax_scale, drop_threshold, drop_scale,
    # DIMS ≥ HEAD_DIM is a power of two; the tile is QUERIES x KEYS; PRECISION of float32 products
    CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """grad_k and grad_v, after `grad_query_kernel`.

    Grid: (blocks of KEYS keys, of all sequences together, H). A program owns a block of keys of one head and walks over
    the queries that see them; matrices are transposed, [keys, queries], as both products need them so.
    """
    head = tl.program_id(1)
    sequence, block = _find_block(cu_k_ptr, num_sequences, tl.program_id(0), KEYS)
    start_q, num_queries = _span(cu_q_ptr, sequence)
    start_k, num_keys = _span(cu_k_ptr, sequence)
    if block * KEYS >= num_keys:
        return
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
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2  # [KEYS, QUERIES]
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
    _store_rows(grad_k_ptr + head * HEAD_DIM, stride_grad_k_row, start_k, keys, num_keys, dims, grad_k, HEAD_DIM)
    _store_rows(grad_v_ptr + head * HEAD_DIM, stride_grad_k_row, start_k, keys, num_keys, dims, grad_v, HEAD_DIM)
