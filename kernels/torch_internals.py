"""What kernels use of PyTorch that is not public, each in one function; `test_torch_internals.py` guards them."""

import functools

import torch
from torch import Tensor


def graph_is_kept() -> bool:
    """Whether the backward that is running was asked to keep its graph, so that what it saved may be needed again."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def is_traced(x: Tensor) -> bool:
    """Whether somebody looks at what is done with x: its class or an active mode is a tracer's, or one that counts."""
    is_plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    return not is_plain or torch._C._len_torch_dispatch_stack() > 0


def softmax_backward(grad: Tensor, probabilities: Tensor) -> Tensor:
    """The gradient of softmax's input over the last axis, of the same dtype. Both: [..., N]."""
    return torch._softmax_backward_data(grad, probabilities, -1, grad.dtype)


def efficient_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    longest_q: int,
    longest_k: int,
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
        longest_q: the largest length in cu_seqlens_q.
        longest_k: the largest length in cu_seqlens_k.
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
        longest_q,
        longest_k,
        dropout_p,
        int(causal),  # the mask's type; 1 is causal, counted from the first key
        compute_log_sumexp=torch.is_grad_enabled(),
    )[0][0]


@functools.cache
def has_onednn_linear(dtype: torch.dtype) -> bool:
    """Whether `onednn_linear` is there and computes in this dtype on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, with_gelu: bool = False) -> Tensor:
    """x · weightᵀ + bias by oneDNN; CPU alone, without gradients.

    Args:
        x: [T, K], of a dtype that `has_onednn_linear`; copied where it is not contiguous.
        weight: [N, K], read where it is, whatever its strides.
        bias: [N].
        with_gelu: put GELU in the erf form behind it.
    """
    epilogue, form = ("gelu", "none") if with_gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, epilogue, [], form)
