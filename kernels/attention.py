"""Multi-head attention over packed sequences.

Legend: T tokens, B sequences, H heads, D head dim, L keys, Q queries. `packed` is query, key and value in one of the
forms of `attention_inputs`.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltalm_ds.kernels import reference
from deltalm_ds.kernels.attention_inputs import Lengths, unpacked
from deltalm_ds.kernels.dispatch import SIXTEEN_BITS, Choice, Op, Preference, implementation
from deltalm_ds.kernels.dropout_mask import draw_seed
from deltalm_ds.kernels.flash_attention import flash_attention
from deltalm_ds.kernels.grouped_attention import attention_by_length, grouped_attention, shapes_are_compiled
from deltalm_ds.kernels.torch_internals import efficient_attention


def self_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, causal: bool = False, dropout_p: float = 0.0
) -> Tensor:
    """softmax(q kᵀ / √D) v within each sequence.

    Args:
        qkv: [T, 3, H, D], any floating dtype.
        cu_seqlens: [B + 1] int32, cumulative lengths from 0.
        max_seqlen: the longest length.
        causal: query i sees keys 0…i.
        dropout_p: dropout on the probabilities, drawn from torch's generator.

    Returns:
        [T, H, D], the dtype of qkv.
    """
    return _attend((qkv,), Lengths(cu_seqlens, cu_seqlens, (max_seqlen, max_seqlen)), causal, dropout_p)


def cross_attention(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / √D) v of each sequence of queries with its keys; without keys it is zero.

    Args:
        q: [Tq, H, D], any floating dtype.
        kv: [Tk, 2, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0.
        cu_seqlens_k: [B + 1] int32, those of keys and values.
        max_seqlen_q: the longest length of queries.
        max_seqlen_k: the longest length of keys.
        dropout_p: dropout on the probabilities, drawn from torch's generator.

    Returns:
        [Tq, H, D], the dtype of q.
    """
    lengths = Lengths(cu_seqlens_q, cu_seqlens_k, (max_seqlen_q, max_seqlen_k))
    return _attend((q, kv), lengths, False, dropout_p)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """The same of three tensors, and with lengths that the host need not know.

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
    return _attend((q, k, v), Lengths(cu_seqlens_q, cu_seqlens_k), causal, dropout_p)


def _attend(packed: tuple[Tensor, ...], lengths: Lengths, causal: bool, dropout_p: float) -> Tensor:
    # a branch, as a compiler may know the rate as a symbol, which cannot choose an implementation
    serve = implementation(OP, packed[0], True) if dropout_p else implementation(OP, packed[0], False)
    return serve(packed, lengths, causal, dropout_p)


def _torch(packed: tuple[Tensor, ...], lengths: Lengths, causal: bool, dropout_p: float) -> Tensor:
    q, k, v = unpacked(*packed)
    if q.device.type == "cuda" and q.dtype != torch.float64:
        return _efficient_attention(q, k, v, lengths, causal, dropout_p)
    cu_seqlens_q, cu_seqlens_k, _ = lengths
    if not (dropout_p or torch.is_grad_enabled() or torch.compiler.is_compiling() or shapes_are_compiled(q)):
        return attention_by_length(q, k, v, cu_seqlens_q, cu_seqlens_k, causal)
    if not dropout_p and _is_dense(q, k, cu_seqlens_q, cu_seqlens_k):
        return _dense_attention(q, k, v, len(cu_seqlens_q) - 1, causal)
    seed = draw_seed(dropout_p, q.device)
    return grouped_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, dropout_p, seed)


def _triton(packed: tuple[Tensor, ...], lengths: Lengths, causal: bool, dropout_p: float) -> Tensor:
    from deltalm_ds.kernels.fused.attention import attention as fused

    seed = draw_seed(dropout_p, packed[0].device)
    return fused(packed, lengths.cu_seqlens_q, lengths.cu_seqlens_k, causal, dropout_p, seed)


def _reference(packed: tuple[Tensor, ...], lengths: Lengths, causal: bool, dropout_p: float) -> Tensor:
    q, k, v = unpacked(*packed)
    seed = draw_seed(dropout_p, q.device)
    return reference.attention(q, k, v, lengths.cu_seqlens_q, lengths.cu_seqlens_k, causal, dropout_p, seed)


def _flash(packed: tuple[Tensor, ...], lengths: Lengths, causal: bool, dropout_p: float) -> Tensor:
    q, k, v = unpacked(*packed)
    cu_seqlens_q, cu_seqlens_k, _ = lengths
    return flash_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, *lengths.longest(), causal, dropout_p)


# Of the two that serve GPUs from sm_80 on in 16 bits. No row has been timed against the other backend: all are
# modelled. FlashAttention-2's masks are not those of the definition, its gradients differ from run to run.
PREFERENCES = (
    Preference((9, 0), SIXTEEN_BITS, False, Choice("triton", "modelled: ahead of FlashAttention-2, written for sm_80")),
    Preference((9, 0), SIXTEEN_BITS, True, Choice("triton", "masks of the definition; modelled: level in speed")),
    Preference((8, 0), SIXTEEN_BITS, False, Choice("triton", "gradients the same in every run; modelled: slower")),
    Preference((8, 0), SIXTEEN_BITS, True, Choice("triton", "masks of the definition; modelled: slower")),
)
COPIED = 1 << 17  # elements that are copied sooner than a product is made for each head

OP = Op(
    torch=_torch,
    triton=_triton,
    reference=_reference,
    flash=_flash,
    needs_tensor_cores=True,
    preferences=PREFERENCES,
)


def _efficient_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, causal: bool, dropout_p: float) -> Tensor:
    """PyTorch's memory-efficient kernel, for GPUs below sm_80."""
    cu_seqlens_q, cu_seqlens_k, _ = lengths
    out = efficient_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, *lengths.longest(), causal, dropout_p)
    if cu_seqlens_q is cu_seqlens_k:  # every query has a key
        return out
    has_keys = torch.repeat_interleave(cu_seqlens_k.diff() > 0, cu_seqlens_q.diff(), output_size=len(q))
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
    is_rounded = q.dtype == torch.float32 and shapes_are_compiled(q)
    if q.is_cpu and q.dtype in (torch.float32, torch.float64) and not is_rounded:
        return _decode_by_products(q, k, v, key_mask)
    # with float32 rounded in products, the CPU's flash kernel would convert every small block by itself: 8 times slower
    with sdpa_kernel(SDPBackend.MATH) if is_rounded else contextlib.nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)


def _decode_by_products(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    """As fast as PyTorch's kernel, in which the last bits of a row depend on the others, on threads and on padding."""
    keys, values = (x.contiguous() if x.numel() <= COPIED else x for x in (k, v))
    scores = _product(q * q.shape[3] ** -0.5, keys.transpose(2, 3))
    if key_mask is not None:
        scores.masked_fill_(~key_mask, float("-inf"))
    return _product(scores.softmax(3), values)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a · b of each sentence and head; where these do not follow each other PyTorch would copy b, in whatever order."""
    if b.is_contiguous() or b.transpose(2, 3).is_contiguous():
        return a @ b
    return torch.stack([torch.bmm(a[:, head], b[:, head]) for head in range(a.shape[1])], 1)
