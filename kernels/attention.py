"""Multi-head attention over packed sequences.

Legend: T tokens, B sequences, H heads, D head dim, L keys, Q queries.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.dispatch import Op, implementation
from deltalm_ds.kernels.dropout_mask import draw_seed
from deltalm_ds.kernels.grouped_attention import grouped_attention, shapes_are_compiled
from deltalm_ds.kernels.torch_internals import efficient_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / √D) v within each sequence; a sequence without keys gives zeros.

    Args:
        q: [Tq, H, D], any floating dtype.
        k: [Tk, H, D].
        v: [Tk, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0.
        cu_seqlens_k: [B + 1] int32, those of keys and values.
        causal: query i sees keys 0…i (the lengths of queries and keys are then equal).
        dropout_p: dropout on the probabilities, drawn from torch's generator.

    Returns:
        [Tq, H, D], the dtype of q.
    """
    return implementation(OP, q)(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, dropout_p)


def _torch(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, dropout_p: float
) -> Tensor:
    if q.device.type == "cuda" and q.dtype != torch.float64:
        return _efficient_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, dropout_p)
    if not dropout_p and _is_dense(q, k, cu_seqlens_q, cu_seqlens_k):
        return _dense_attention(q, k, v, len(cu_seqlens_q) - 1, causal)
    seed = draw_seed(dropout_p, q.device)
    return grouped_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, dropout_p, seed)


def _triton(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, dropout_p: float
) -> Tensor:
    from deltalm_ds.kernels.fused.attention import attention as fused

    return fused(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, dropout_p, draw_seed(dropout_p, q.device))


def _reference(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, dropout_p: float
) -> Tensor:
    seed = draw_seed(dropout_p, q.device)
    return reference.attention(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, dropout_p, seed)


OP = Op(torch=_torch, triton=_triton, reference=_reference, needs_tensor_cores=True)


def _efficient_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, causal: bool, dropout_p: float
) -> Tensor:
    """PyTorch's memory-efficient kernel, for GPUs below sm_80; it needs the longest lengths on the host."""
    lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    longest_q, longest_k = torch.stack([lengths_q.max(), lengths_k.max()]).tolist()
    out = efficient_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, longest_q, longest_k, causal, dropout_p)
    has_keys = torch.repeat_interleave(lengths_k > 0, lengths_q, output_size=len(q))
    return torch.where(has_keys[:, None, None], out, 0.0)


def _is_dense(q: Tensor, k: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> bool:
    """Whether nothing would be padding in one call, and PyTorch's kernel is as fast as ours (not in 16 bits)."""
    if torch.compiler.is_compiling() or shapes_are_compiled(q):
        return False
    lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    is_filled = len(q) > 0 and len(k) > 0 and len(q) == cu_seqlens_q[-1] and len(k) == cu_seqlens_k[-1]
    return is_filled and bool((lengths_q == lengths_q[0]).all()) and bool((lengths_k == lengths_k[0]).all())


def _dense_attention(q: Tensor, k: Tensor, v: Tensor, num_sequences: int, causal: bool) -> Tensor:
    q, k, v = (x.unflatten(0, (num_sequences, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(0, 1)


def decode_attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Attention of a decoding step over cached keys and values.

    Args:
        q: [B, H, Q, D], the new queries (Q is 1 for self-attention, the beam for cross-attention).
        k: [B, H, L, D].
        v: [B, H, L, D].
        key_mask: [B, 1, 1, L] bool, True at keys; None if all are.

    Returns:
        [B, H, Q, D], the dtype of q.
    """
    # with float32 rounded in products, the CPU's flash kernel would convert every small block by itself: 8 times slower
    is_rounded = q.dtype == torch.float32 and shapes_are_compiled(q)
    with sdpa_kernel(SDPBackend.MATH) if is_rounded else contextlib.nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)
