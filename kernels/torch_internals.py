"""What kernels use of PyTorch that is not public, or not everywhere; `test_torch_internals.py` guards each function."""

import functools

import torch
from torch import Tensor


def graph_is_kept() -> bool:
    """Whether the backward that is running was asked to keep its graph, so that what it saved may be needed again."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


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
