"""FlashAttention-2 as PyTorch ships it, over packed sequences: GPUs from sm_80 on, 16 bits [Dao23].

Its masks are its own, drawn from torch's generator, and its gradient of queries is summed by atomics: the same inputs
give the same bits only under `torch.use_deterministic_algorithms`. Legend: T tokens, B sequences, H heads, D head dim.
"""

import torch
from torch import Tensor

from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.torch_internals import flash_attention_backward, flash_attention_forward

MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 256, 8


def _forward_shapes(q, k, v, *others):
    log_total = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
    return q.new_empty(q.shape), log_total, q.new_empty(2, dtype=torch.uint64)


def _backward_shapes(grad, q, k, v, *others):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.causal, ctx.p = inputs
    q, k, v, cu_seqlens_q, cu_seqlens_k = tensors
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k)


def _gradients(ctx, grad, _grad_log_total, _grad_masks):
    if grad is None:
        return (None,) * 9
    others = (ctx.max_seqlen_q, ctx.max_seqlen_k, ctx.causal, ctx.p)
    return *_BACKWARD(grad, *ctx.saved_tensors, *others), *[None] * 6


_BACKWARD = CustomOp("flash_attention_backward", flash_attention_backward, _backward_shapes)
_FORWARD = CustomOp("flash_attention", flash_attention_forward, _forward_shapes, _setup_context, _gradients)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    p: float,
) -> Tensor:
    """softmax(q kᵀ / √D) v within each sequence; zeros for queries without keys.

    Args:
        q: [Tq, H, D], 16 bits, D a multiple of 8 and at most 256.
        k: [Tk, H, D].
        v: [Tk, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0 to Tq.
        cu_seqlens_k: [B + 1] int32, from 0 to Tk.
        max_seqlen_q: the longest length of queries.
        max_seqlen_k: the longest length of keys.
        causal: query i sees keys 0…i (the lengths of queries and keys are then equal).
        p: rate of dropout on the probabilities.

    Returns:
        [Tq, H, D].

    Raises:
        ValueError: D is none that it has kernels for.
    """
    head_dim = q.shape[2]
    if head_dim > MAX_HEAD_DIM or head_dim % HEAD_DIM_MULTIPLE:
        raise ValueError(
            f"FlashAttention has heads of a multiple of {HEAD_DIM_MULTIPLE} dimensions, at most {MAX_HEAD_DIM}, "
            f"not of {head_dim}."
        )
    return _FORWARD(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, p)[0]
