"""The feed-forward sub-layer: `make bench-kernels/feed_forward`, with `ARGS=--record` to keep it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import ON_GPU, TOY
from benchmarks.kernels.harness import DTYPES, Work, leaf, main, on_gpu
from deltalm_ds.kernels.feed_forward import feed_forward

WIDTH, INNER = (32, 64) if TOY else (768, 3072)
NUM_TOKENS = (8,) if TOY else (4096, 32768) if ON_GPU else (512, 2048)


def eager(x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, bias_out: Tensor, p: float) -> Tensor:
    """As usually written."""
    return F.linear(F.dropout(F.gelu(F.linear(x, weight_in, bias_in)), p), weight_out, bias_out)


def works() -> Iterator[Work]:
    """Few and many tokens, without and with dropout."""
    compiled = torch.compile(eager, dynamic=False)
    for dtype in DTYPES:
        for num_tokens in NUM_TOKENS:
            shapes = [(num_tokens, WIDTH), (INNER, WIDTH), (INNER,), (WIDTH, INNER), (WIDTH,)]
            inputs = [leaf(*shape, dtype=dtype) for shape in shapes]
            for p in (0.0, 0.1):
                contenders = {
                    "ours": (lambda inputs=inputs, p=p: feed_forward(*inputs, p), inputs),
                    "eager": (lambda inputs=inputs, p=p: eager(*inputs, p), inputs),
                    **on_gpu({"compiled": (lambda inputs=inputs, p=p: compiled(*inputs, p), inputs)}),
                }
                name = f"{num_tokens} tokens x {WIDTH} x {INNER}, dropout {p}, {dtype}"
                yield Work(name, "GFLOP/s", 12 * num_tokens * WIDTH * INNER, contenders)


if __name__ == "__main__":
    main("feed_forward", works())
