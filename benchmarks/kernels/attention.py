"""Attention over packed sequences: `make bench-kernels/attention`, with `ARGS=--record` to keep it.

The peer gets its tensors padded, as models without packing have them: packing costs it nothing here.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.harness import DEVICE, DTYPES, Work, leaf, main
from deltalm_ds.kernels.attention import attention

HEADS, HEAD_DIM = 12, 64
LONGEST = 512 if DEVICE.type == "cuda" else 128


def mixed(num: int, mean: float, longest: int) -> Tensor:
    """Lengths as those of sentences: gamma-distributed, of the given mean."""
    torch.manual_seed(0)
    return torch.distributions.Gamma(4.0, 4.0 / mean).sample((num,)).round().clamp(1, longest).long()


LENGTHS = {
    f"8 x {LONGEST}": torch.full((8,), LONGEST),
    "64 x 32": torch.full((64,), 32),
    "64 mixed, mean 28 (news)": mixed(64, 28, LONGEST),
    "128 mixed, mean 14 (captions)": mixed(128, 14, LONGEST),
}


def work(name: str, lengths: Tensor, causal: bool, p: float, dtype: torch.dtype) -> Work:
    """Self-attention of sequences of these lengths."""
    cu = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE, torch.int32)
    packed = [leaf(int(lengths.sum()), HEADS, HEAD_DIM, dtype=dtype) for _ in range(3)]
    padded = [leaf(len(lengths), HEADS, int(lengths.max()), HEAD_DIM, dtype=dtype) for _ in range(3)]
    inside = (torch.arange(int(lengths.max())) < lengths[:, None]).to(DEVICE)
    mask = None if causal or inside.all() else inside[:, None, None, :]
    return Work(
        f"{name}, {'causal' if causal else 'full'}, dropout {p}, {dtype}",
        "GFLOP/s",
        12 * int(lengths.square().sum()) * HEADS * HEAD_DIM / (2 if causal else 1),
        {
            "ours": (lambda: attention(*packed, cu, cu, causal, p), packed),
            "padded SDPA": (
                lambda: F.scaled_dot_product_attention(*padded, attn_mask=mask, dropout_p=p, is_causal=causal),
                padded,
            ),
        },
    )


def works() -> Iterator[Work]:
    """Equal and mixed lengths, full and causal, without and with dropout."""
    for dtype in DTYPES:
        for name, lengths in LENGTHS.items():
            for causal, p in ((False, 0.0), (True, 0.0), (False, 0.1)):
                yield work(name, lengths, causal, p, dtype)


if __name__ == "__main__":
    main("attention", works())
