"""What kernels use of PyTorch that is not public, or not everywhere; `test_torch_internals.py` guards each function."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def graph_is_kept() -> bool:
    """Whether the backward that is running was asked to keep its graph, so that what it saved may be needed again."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def is_traced(x: Tensor) -> bool:
    """Whether somebody looks at what is done with x: its class or an active mode is a tracer's, or one that counts."""
    is_plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    return not is_plain or torch._C._len_torch_dispatch_stack() > 0


def constant_when_traced(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`, which takes a second to import the compiler wherever it stands."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@functools.cache
def adds_products_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch.addmm` can add a product of 16 bits to a float32 sum without rounding it to 16 bits before.

    CUDA alone has it, and early versions refuse a sum that is wider than the factors: so it is tried once. The host
    waits for the answer.
    """
    total, factor = torch.full((16, 16), 0.25, device=device), torch.full((16, 16), 64.0, device=device, dtype=dtype)
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 65536.25).all())  # 18 bits


def softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """The gradient of softmax's input over the last axis, of the same dtype. Both: [..., N]."""
    return torch._softmax_backward_data(grad, probabilities, -1, grad.dtype)


def efficient_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    dropout_p: float,
) -> Tensor:
    """PyTorch's memory-efficient kernel over packed sequences, of which its public function knows nothing; CUDA alone.

    Args:
        q: [Tq, H, D], float32 or 16 bits.
        k: [Tk, H, D].
        v: [Tk, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0.
        cu_seqlens_k: [B + 1] int32.
        max_seqlen_q: the largest length in cu_seqlens_q.
        max_seqlen_k: the largest length in cu_seqlens_k.
        causal: query i sees keys 0…i.
        dropout_p: rate of dropout on the probabilities, with torch's own masks.

    Returns:
        [Tq, H, D]; undefined for queries without keys.
    """
    return torch.ops.aten._efficient_attention_forward(
        q[None],
        k[None],
        v[None],
        None,  # bias
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p,
        int(causal),  # the mask's type; 1 is causal, counted from the first key
        compute_log_sumexp=torch.is_grad_enabled(),
    )[0][0]


def flash_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's FlashAttention-2 over packed sequences; its public function drops nothing. CUDA from sm_80 on alone.

    Args:
        q: [Tq, H, D], 16 bits, D a multiple of 8.
        k: [Tk, H, D].
        v: [Tk, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0.
        cu_seqlens_k: [B + 1] int32.
        max_seqlen_q: the largest length in cu_seqlens_q.
        max_seqlen_k: the largest length in cu_seqlens_k.
        causal: query i sees keys 0…i, where both lengths are equal.
        dropout_p: rate of dropout on the probabilities, with masks of its own.

    Returns:
        [Tq, H, D], zeros for queries without keys; and for its backward the log-sum-exp of each query's scores [H, Tq]
        float32 and the state of its masks [2] uint64.
    """
    if not len(q) or not len(k):  # its kernels cannot be launched for nothing
        nothing = q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float32)
        return q.new_zeros(q.shape), nothing, q.new_empty(2, dtype=torch.uint64)
    out, log_total, masks, _unused, _probabilities = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, causal, return_debug_mask=False
    )
    return out, log_total, masks


def flash_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_total: Tensor,
    masks: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v.

    Args:
        grad: [Tq, H, D], the gradient of `out`.
        q: [Tq, H, D], as in the forward, like all that is not named here.
        k: [Tk, H, D].
        v: [Tk, H, D].
        out: [Tq, H, D], the forward's first result.
        log_total: [H, Tq] float32, its second.
        masks: [2] uint64, its third.
        cu_seqlens_q: [B + 1] int32.
        cu_seqlens_k: [B + 1] int32.
        max_seqlen_q: the largest length in cu_seqlens_q.
        max_seqlen_k: the largest length in cu_seqlens_k.
        causal: as in the forward.
        dropout_p: as in the forward.
    """
    if not len(q) or not len(k):
        return q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    unused = torch.empty(0, dtype=torch.uint64, device=q.device)
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, log_total, *lengths, dropout_p, causal, masks, unused
    )


@functools.cache
def has_onednn_linear(dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` is there and computes in this dtype on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_onednn_packing(dtype: torch.dtype) -> bool:
    """Whether `onednn_packed` is there too."""
    return has_onednn_linear(dtype) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def onednn_packed(weight: Tensor, num_tokens: int) -> Tensor:
    """A copy of a layer's weight [N, K] in oneDNN's own order for about so many tokens; `onednn_linear` takes it.

    It is opaque: it has a shape, and nothing else can be done with it.
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_tokens)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, with_gelu: bool = False) -> Tensor:
    """x · weightᵀ + bias by oneDNN; CPU alone, without gradients.

    Args:
        x: [T, K], of a dtype that `has_onednn_linear`; copied where it is not contiguous.
        weight: [N, K], read where it is, whatever its strides; or `onednn_packed`.
        bias: [N].
        with_gelu: put GELU in the erf form behind it.
    """
    epilogue, form = ("gelu", "none") if with_gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, epilogue, [], form)
