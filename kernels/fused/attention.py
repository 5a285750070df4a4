"""Flash attention over packed sequences, forward and backward, with dropout on the probabilities [Dao23].

Nothing quadratic is stored: the backward makes the probabilities again from each query's log-sum-exp. A program owns
one block of queries (or, for the gradients of keys and values, of keys) of one sequence and head, and no two programs
write the same element: results are deterministic.

The kernels: `attention_kernels.py`. Legend: T tokens, B sequences, H heads, D head dim.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dropout_mask import scale, threshold
from deltalm_ds.kernels.fused.attention_kernels import forward_kernel, grad_key_value_kernel, grad_query_kernel

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

    Large tiles read keys and values fewer times; how large is what the registers of a multiprocessor hold without
    spilling (`test_compilation.py`). The forward holds scores and one output a query, the gradient of queries as much
    and a second product, that of keys and values two outputs a key.
    """
    is_narrow = q.shape[2] <= 64
    warps = 4 if is_narrow else 8  # a wider head has twice the output, which twice the warps share
    if q.dtype == torch.float32:
        # twice the registers an element, and products without tensor cores where they are exact: the smallest tiles
        return Blocks(32, 32, warps), Blocks(32, 32, 8), Blocks(32, 32, 4)
    if (dispatch.compute_capability(q.device) or (8, 0)) >= (9, 0):
        # products of sm_90 take keys and values from shared memory, not from registers: room for 64 keys everywhere
        return Blocks(128, 64, 8), Blocks(32, 64, warps), Blocks(64, 64, warps)
    if is_narrow:
        # operands are in registers: what else the backward holds leaves room for 32 keys
        return Blocks(128, 64, 8), Blocks(32, 32, 4), Blocks(64, 32, 4)
    # and a wide head has twice the elements a key in the forward too
    return Blocks(128, 32, 8), Blocks(32, 32, 8), Blocks(64, 32, 8)


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
    """Of q, k and v by row and by head, and the row of a contiguous [T, H, D]."""
    return *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], q.shape[1] * q.shape[2]


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
    forward_kernel[_grid(num_queries, cu_seqlens_q, blocks.queries, num_heads)](
        q, k, v, cu_seqlens_q, cu_seqlens_k, seed, out, log_total, *_strides(q, k, v),
        len(cu_seqlens_q) - 1, num_queries, LOG2_E / math.sqrt(head_dim), threshold(p), scale(p),
        **_constants(q, cu_seqlens_q, causal, seed), **blocks.options(),
    )  # fmt: skip
    return out, log_total


def _forward_shapes(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, p, seed):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


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
    grad_query_kernel[_grid(num_queries, cu_seqlens_q, query_blocks.queries, num_heads)](
        q, k, v, out, grad, cu_seqlens_q, cu_seqlens_k, seed, log_total, along_out, grad_q, *_strides(q, k, v),
        *numbers, **constants, **query_blocks.options(),
    )  # fmt: skip
    grad_key_value_kernel[_grid(len(k), cu_seqlens_k, key_blocks.keys, num_heads)](
        q, k, v, grad, cu_seqlens_q, cu_seqlens_k, seed, log_total, along_out, grad_k, grad_v, *_strides(q, k, v),
        *numbers, **constants, **key_blocks.options(),
    )  # fmt: skip
    return grad_q, grad_k, grad_v


def _backward_shapes(grad, q, k, v, out, log_total, cu_seqlens_q, cu_seqlens_k, causal, p, seed):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    q, k, v, cu_seqlens_q, cu_seqlens_k, ctx.causal, ctx.p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, seed)


def _gradients(ctx, grad, _grad_log_total):
    if grad is None:
        return (None,) * 8
    *tensors, seed = ctx.saved_tensors
    return *_BACKWARD(grad.contiguous(), *tensors, ctx.causal, ctx.p, seed), None, None, None, None, None


_BACKWARD = CustomOp("attention_backward", _backward, _backward_shapes)
_FORWARD = CustomOp("attention", _forward, _forward_shapes, _setup_context, _gradients)


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

    Args:
        q: [Tq, H, D], D at most 128; float32 or 16 bits.
        k: [Tk, H, D].
        v: [Tk, H, D].
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0 to Tq.
        cu_seqlens_k: [B + 1] int32, from 0 to Tk.
        causal: query i sees keys 0…i.
        p: rate of dropout on the probabilities.
        seed: [1] int64, of the masks; None where nothing is dropped.

    Raises:
        ValueError: D is too large.
    """
    if q.shape[2] > MAX_HEAD_DIM:
        raise ValueError(f"The fused attention has heads of at most {MAX_HEAD_DIM} dimensions, not {q.shape[2]}.")
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    return _FORWARD(q, k, v, cu_seqlens_q, cu_seqlens_k, causal, p, seed)[0]
