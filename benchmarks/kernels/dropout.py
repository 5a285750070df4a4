"""Dropout: `make bench-kernels/dropout`, with `ARGS=--record` to keep it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from benchmarks.device import ON_GPU, TOY
from benchmarks.kernels.harness import DTYPES, Work, leaf, main, on_gpu
from deltalm_ds.kernels.dropout import dropout

NUM_TOKENS = (8,) if TOY else (4096, 65536) if ON_GPU else (512, 4096)


def works() -> Iterator[Work]:
    """Rows of the model's width."""
    compiled = torch.compile(F.dropout, dynamic=False)
    for dtype in DTYPES:
        for num_tokens in NUM_TOKENS:
            x = leaf(num_tokens, 768, dtype=dtype)
            contenders = {
                "ours": (lambda x=x: dropout(x, 0.1), [x]),
                "eager": (lambda x=x: F.dropout(x, 0.1), [x]),
                **on_gpu({"compiled": (lambda x=x: compiled(x, 0.1), [x])}),
            }
            yield Work(f"{num_tokens} tokens x 768, rate 0.1, {dtype}", "GB/s", 4 * x.nbytes, contenders)


if __name__ == "__main__":
    main("dropout", works())
