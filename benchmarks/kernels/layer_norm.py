"""dropout + residual + LayerNorm: `make bench-kernels/layer_norm`, with `ARGS=--record` to keep it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import ON_GPU, TOY
from benchmarks.kernels.harness import DTYPES, Work, leaf, main, on_gpu
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm

WIDTH = 32 if TOY else 768
NUM_TOKENS = (8,) if TOY else (4096, 65536) if ON_GPU else (512, 4096)


def eager(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, p: float) -> Tensor:
    """As usually written."""
    return F.layer_norm(residual + F.dropout(x, p), (WIDTH,), weight, bias)


def works() -> Iterator[Work]:
    """Few and many tokens, without and with dropout; reads x, residual, and both again with grad; writes 3."""
    compiled = torch.compile(eager, dynamic=False)
    for dtype in DTYPES:
        for num_tokens in NUM_TOKENS:
            inputs = [leaf(*shape, dtype=dtype) for shape in ((num_tokens, WIDTH),) * 2 + ((WIDTH,),) * 2]
            for p in (0.0, 0.1):
                contenders = {
                    "ours": (lambda inputs=inputs, p=p: dropout_add_layer_norm(*inputs, 1e-5, p), inputs),
                    "eager": (lambda inputs=inputs, p=p: eager(*inputs, p), inputs),
                    **on_gpu({"compiled": (lambda inputs=inputs, p=p: compiled(*inputs, p), inputs)}),
                }
                name = f"{num_tokens} tokens x {WIDTH}, dropout {p}, {dtype}"
                yield Work(name, "GB/s", 8 * inputs[0].nbytes, contenders)


if __name__ == "__main__":
    main("layer_norm", works())
