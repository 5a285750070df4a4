"""Flash attention over packed sequences, forward and backward, with dropout on the probabilities [Dao23].

Nothing quadratic is stored: the backward makes the probabilities again from each query's log-sum-exp. A program owns
one block of queries (or, for the gradients of keys and values, of keys) of one sequence and head, and no two programs
write the same element: results are deterministic.

The kernels: `attention_kernels.py`. Legend: T tokens, B sequences, H heads, D head dim. x, y, z are query, key and
value in one of the forms of `attention_inputs`: (q, k, v), (q, kv, None) or (qkv, None, None).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.attention_inputs import unpacked
from deltalm_ds.kernels.custom_op import CustomOp
from deltalm_ds.kernels.dropout_mask import scale, threshold
from deltalm_ds.kernels.fused.attention_kernels import forward_kernel, grad_key_value_kernel, grad_query_kernel
from deltalm_ds.kernels.fused.sizes import next_power_of_2

MAX_HEAD_DIM = 128
LOG2_E = math.log2(math.e)


class Blocks(NamedTuple):
    """Tile of one kernel: QUERIES x KEYS, the warps that share it, the most registers of a thread, stages of its loads.

    With two stages Triton waits for a tile's keys and values right after it asked for them; with three they are on
    their way while the tile before is computed.
    """

    queries: int
    keys: int
    num_warps: int
    max_registers: int | None = None  # as many as the compiler likes
    num_stages: int = 3

    def options(self) -> dict[str, int]:
        """Arguments of the launch."""
        options = {"QUERIES": self.queries, "KEYS": self.keys, "num_warps": self.num_warps}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return {**options, "num_stages": self.num_stages}


# Of 16 bits, by (sm_90, form of the heads): tiles of the forward, of the gradients of keys and values, and of the
# gradient of queries. Chosen by how many warps a multiprocessor holds, which registers and shared memory limit, without
# values outside the registers (`test_compilation.py`; numbers of Triton 3.7). A limit on registers is set where the
# compiler takes more than it needs: 128 lets 16 warps in, 168 lets 12 in, more than that 8. Nothing of it was timed.
_TILES = {
    # 16, 12, 16 warps; 64, 41, 80 KB a block. Products of sm_90 take keys and values from shared memory
    (True, "plain"): (Blocks(128, 64, 8, 128), Blocks(32, 64, 4), Blocks(128, 64, 8, 128)),
    # 16, 8, 12 warps; 72, 69, 42 KB. Masks take 40 to 100 registers more: without the limit 8 warps of the forward.
    # Keys and values spill at 168 registers with 64 keys, so 8 warps it is, and then the widest products
    (True, "dropout"): (Blocks(128, 64, 8, 128), Blocks(64, 64, 4), Blocks(64, 32, 4, 168)),
    # Also heads that are no power of two. 8 warps each; at most 136, 83, 132 KB. A head of 128 has twice the outputs,
    # which twice the warps share
    (True, "wide"): (Blocks(128, 64, 8), Blocks(32, 64, 8), Blocks(64, 64, 8)),
    # 12, 16 (full: 20), 12 warps; 40, 27, 32 KB. Operands of products are in registers
    (False, "plain"): (Blocks(64, 64, 4, 168), Blocks(32, 32, 4), Blocks(64, 32, 4, 168)),
    # 12, 12 (full: 16), 12 warps; 26, 27, 44 KB. Gradients of 64 queries would spill
    (False, "dropout"): (Blocks(64, 32, 4, 168), Blocks(32, 32, 4), Blocks(32, 64, 4, 168)),
    # 8 warps each, 16 of keys and values without dropout; at most 68, 53, 72 KB
    (False, "wide"): (Blocks(128, 32, 8), Blocks(32, 32, 8), Blocks(64, 32, 8)),
}


def _blocks(q: Tensor, is_dropped: bool) -> tuple[Blocks, Blocks, Blocks]:
    """Of the forward, of the gradients of keys and values, and of the gradient of queries."""
    if q.dtype == torch.float32:
        # twice the registers an element, and products without tensor cores where they are exact: the smallest tiles.
        # With a third stage sm_80 would hold 12 warps of the forward instead of 20
        warps = 4 if q.shape[2] <= 64 else 16  # 8 would hold 255 registers on sm_90, and more outside
        smallest = Blocks(32, 32, 4, num_stages=2)
        return smallest._replace(num_warps=warps), smallest._replace(num_warps=8), smallest
    is_sm_90 = (dispatch.compute_capability(q.device) or (8, 0)) >= (9, 0)
    if q.shape[2] not in (16, 32, 64):
        return _TILES[is_sm_90, "wide"]
    return _TILES[is_sm_90, "dropout" if is_dropped else "plain"]


def _constants(q: Tensor, causal: bool, seed: Tensor | None) -> dict[str, Any]:
    """What all three kernels are compiled for."""
    head_dim = q.shape[2]
    exact = q.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return {
        "CAUSAL": causal,
        "HAS_DROPOUT": seed is not None,
        "PRECISION": "ieee" if exact else "tf32",
        "HEAD_DIM": head_dim,
        "DIMS": max(16, next_power_of_2(head_dim)),
    }


def _grid(num_tokens: int, cu_seqlens: Tensor, block: int, num_heads: int) -> tuple[int, int]:
    """At least the number of blocks of all sequences, without reading their lengths; the rest end at once."""
    return num_tokens // block + len(cu_seqlens) - 1, num_heads


def _strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    """Of q, k and v by row and by head, and the row of a contiguous [T, H, D]."""
    return *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], q.shape[1] * q.shape[2]


def _forward(
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The result [Tq, H, D] and the log-sum-exp of each query's scores [H, Tq] float32, base 2."""
    q, k, v = unpacked(x, y, z)
    num_queries, num_heads, head_dim = q.shape
    out = q.new_empty(q.shape)
    log_total = q.new_empty(num_heads, num_queries, dtype=torch.float32)
    blocks = _blocks(q, seed is not None)[0]
    forward_kernel[_grid(num_queries, cu_seqlens_q, blocks.queries, num_heads)](
        q, k, v, cu_seqlens_q, cu_seqlens_k, seed, out, log_total, *_strides(q, k, v),
        len(cu_seqlens_q) - 1, num_queries, LOG2_E / math.sqrt(head_dim), threshold(p), scale(p),
        **_constants(q, causal, seed), **blocks.options(),
    )  # fmt: skip
    return out, log_total


def _forward_shapes(x, y, z, cu_seqlens_q, cu_seqlens_k, causal, p, seed):
    q = unpacked(x, y, z)[0]
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def _backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    out: Tensor,
    log_total: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float,
    seed: Tensor | None,
) -> list[Tensor]:
    """Gradients of those of x, y and z that there are, each written in the form of its tensor: nothing is stacked."""
    q, k, v = unpacked(x, y, z)
    num_queries, num_heads, head_dim = q.shape
    softmax_scale = 1 / math.sqrt(head_dim)
    gradients = _backward_shapes(grad, x, y, z)
    grad_q, grad_k, grad_v = unpacked(*gradients)
    along_out = torch.empty_like(log_total)
    constants, strides = _constants(q, causal, seed), _strides(q, k, v)
    numbers = (len(cu_seqlens_q) - 1, num_queries, LOG2_E * softmax_scale, softmax_scale, threshold(p), scale(p))
    _, key_blocks, query_blocks = _blocks(q, seed is not None)
    grad_query_kernel[_grid(num_queries, cu_seqlens_q, query_blocks.queries, num_heads)](
        q, k, v, out, grad, cu_seqlens_q, cu_seqlens_k, seed, log_total, along_out, grad_q, *strides, grad_q.stride(0),
        *numbers, **constants, **query_blocks.options(),
    )  # fmt: skip
    grad_key_value_kernel[_grid(len(k), cu_seqlens_k, key_blocks.keys, num_heads)](
        q, k, v, grad, cu_seqlens_q, cu_seqlens_k, seed, log_total, along_out, grad_k, grad_v,
        *strides, grad_k.stride(0), *numbers, **constants, **key_blocks.options(),
    )  # fmt: skip
    return gradients


def _backward_shapes(grad, x, y, z, *others):
    return [tensor.new_empty(tensor.shape) for tensor in (x, y, z) if tensor is not None]


def _setup_context(ctx, inputs, output):
    x, y, z, cu_seqlens_q, cu_seqlens_k, ctx.causal, ctx.p, seed = inputs
    ctx.save_for_backward(x, y, z, *output, cu_seqlens_q, cu_seqlens_k, seed)


def _gradients(ctx, grad, _grad_log_total):
    if grad is None:
        return (None,) * 8
    *tensors, seed = ctx.saved_tensors
    gradients = _BACKWARD(grad.contiguous(), *tensors, ctx.causal, ctx.p, seed)
    return *gradients, *[None] * (8 - len(gradients))


_BACKWARD = CustomOp("attention_backward", _backward, _backward_shapes)
_FORWARD = CustomOp("attention", _forward, _forward_shapes, _setup_context, _gradients)


def attention(
    packed: tuple[Tensor, ...],
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    causal: bool,
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ / √D) v within each sequence; see `deltalm_ds.kernels.reference`.

    Args:
        packed: (q, k, v), (q, kv) or (qkv,), D at most 128; float32 or 16 bits.
        cu_seqlens_q: [B + 1] int32, cumulative lengths from 0 to Tq.
        cu_seqlens_k: [B + 1] int32, from 0 to Tk.
        causal: query i sees keys 0…i.
        p: rate of dropout on the probabilities.
        seed: [1] int64, of the masks; None where nothing is dropped.

    Returns:
        [Tq, H, D].

    Raises:
        ValueError: D is too large.
    """
    head_dim = packed[0].shape[-1]
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"The fused attention has heads of at most {MAX_HEAD_DIM} dimensions, not {head_dim}.")
    tensors = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in packed]
    x, y, z = (*tensors, None, None)[:3]
    return _FORWARD(x, y, z, cu_seqlens_q, cu_seqlens_k, causal, p, seed)[0]
