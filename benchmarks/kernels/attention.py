"""Attention over packed sequences: `make bench-kernels/attention`, with `ARGS=--record` to keep it.

The peer gets its tensors padded, as models without packing have them: packing costs it nothing here. On a GPU
FlashAttention-2 and the memory-efficient kernel of PyTorch take packed sequences as ours does, and cuDNN dense ones.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.device import DEVICE, ON_GPU, TOY
from benchmarks.kernels.harness import DTYPES, Contender, Work, leaf, main, on_gpu
from deltalm_ds.kernels.attention import attention

HEADS, HEAD_DIM = (2, 16) if TOY else (12, 64)
LONGEST = 512 if ON_GPU else 128
BATCH, SOURCE, TARGET = 64, 512, 114  # a micro-batch that fills a GPU


def mixed(num: int, mean: float, longest: int) -> Tensor:
    """Lengths as those of sentences: gamma-distributed, of the given mean."""
    torch.manual_seed(0)
    return torch.distributions.Gamma(4.0, 4.0 / mean).sample((num,)).round().clamp(1, longest).long()


def equal(num: int, length: int) -> Tensor:
    """The same length `num` times."""
    return torch.full((num,), length)


def settings() -> Iterator[tuple[str, Tensor, Tensor, bool, float]]:
    """Name, lengths of queries and of keys, causal or not, rate of dropout."""
    kinds = ((False, 0.0), (True, 0.0), (False, 0.1))
    if TOY:
        yield from (("3 mixed", mixed(3, 6, 16), mixed(3, 6, 16), causal, p) for causal, p in kinds)
    elif ON_GPU:
        source, target, captions = equal(BATCH, SOURCE), equal(BATCH, TARGET), mixed(1024, 28, LONGEST)
        for p in (0.0, 0.1):
            yield f"self {BATCH} x {SOURCE}", source, source, False, p
            yield f"causal {BATCH} x {TARGET}", target, target, True, p
            yield f"cross {BATCH} x {TARGET} of {SOURCE}", target, source, False, p
            yield "mixed 1024, mean 28", captions, captions, False, p
    else:
        of_name = {
            f"8 x {LONGEST}": equal(8, LONGEST),
            "64 x 32": equal(64, 32),
            "64 mixed, mean 28 (news)": mixed(64, 28, LONGEST),
            "128 mixed, mean 14 (captions)": mixed(128, 14, LONGEST),
        }
        yield from ((name, lengths, lengths, causal, p) for name, lengths in of_name.items() for causal, p in kinds)


def work(name: str, lengths_q: Tensor, lengths_k: Tensor, causal: bool, p: float, dtype: torch.dtype) -> Work:
    """Attention of sequences of these lengths."""
    cu_q, cu_k = (F.pad(lengths.cumsum(0), (1, 0)).to(DEVICE, torch.int32) for lengths in (lengths_q, lengths_k))
    rows = [int(lengths.sum()) for lengths in (lengths_q, lengths_k, lengths_k)]
    packed = [leaf(num, HEADS, HEAD_DIM, dtype=dtype) for num in rows]
    return Work(
        f"{name}, {'causal' if causal else 'full'}, dropout {p}, {dtype}",
        "GFLOP/s",
        12 * int((lengths_q * lengths_k).sum()) * HEADS * HEAD_DIM / (2 if causal else 1),
        {
            "ours": (lambda: attention(*packed, cu_q, cu_k, causal, p), packed),
            "padded SDPA": _padded(lengths_q, lengths_k, causal, p, dtype),
            **on_gpu(_on_gpu(packed, cu_q, cu_k, (int(lengths_q.max()), int(lengths_k.max())), causal, p)),
            **on_gpu(_dense(lengths_q, lengths_k, causal, p, dtype)),
        },
    )


def _padded(lengths_q: Tensor, lengths_k: Tensor, causal: bool, p: float, dtype: torch.dtype) -> Contender:
    longest = int(lengths_k.max())
    inside = (torch.arange(longest) < lengths_k[:, None]).to(DEVICE)
    mask = None if causal or inside.all() else inside[:, None, None, :]
    inputs = _dense_inputs(lengths_q, lengths_k, dtype)
    return lambda: F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=p, is_causal=causal), inputs


def _dense_inputs(lengths_q: Tensor, lengths_k: Tensor, dtype: torch.dtype) -> list[Tensor]:
    longest = [int(lengths.max()) for lengths in (lengths_q, lengths_k, lengths_k)]
    return [leaf(len(lengths_q), HEADS, length, HEAD_DIM, dtype=dtype) for length in longest]


def _on_gpu(
    packed: list[Tensor], cu_q: Tensor, cu_k: Tensor, longest: tuple[int, int], causal: bool, p: float
) -> dict[str, Contender]:
    """PyTorch's own kernels for packed sequences."""

    def flash() -> Tensor:
        return torch.ops.aten._flash_attention_forward(*packed, cu_q, cu_k, *longest, p, causal, False)[0]

    def efficient() -> Tensor:
        inputs = [x[None] for x in packed]
        options = (cu_q, cu_k, *longest, p, int(causal))
        return torch.ops.aten._efficient_attention_forward(*inputs, None, *options, compute_log_sumexp=True)[0][0]

    return {"FlashAttention-2": (flash, packed), "memory-efficient": (efficient, packed)}


def _dense(lengths_q: Tensor, lengths_k: Tensor, causal: bool, p: float, dtype: torch.dtype) -> dict[str, Contender]:
    """What is for equal lengths only."""
    if len({*lengths_q.tolist()}) > 1 or len({*lengths_k.tolist()}) > 1:
        return {}
    inputs = _dense_inputs(lengths_q, lengths_k, dtype)

    def with_backend(backend: SDPBackend) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(*inputs, dropout_p=p, is_causal=causal)

        return forward

    return {"cuDNN, dense": (with_backend(SDPBackend.CUDNN_ATTENTION), inputs)}


def works() -> Iterator[Work]:
    """Equal and mixed lengths, full and causal, without and with dropout."""
    for dtype in DTYPES:
        for setting in settings():
            yield work(*setting, dtype)


if __name__ == "__main__":
    main("attention", works())
