"""Dropout: `make bench-kernels/dropout`, with `ARGS=--record` to keep it."""

from collections.abc import Iterator

import torch.nn.functional as F

from benchmarks.kernels.harness import DTYPES, Work, leaf, main
from deltalm_ds.kernels.dropout import dropout


def works() -> Iterator[Work]:
    """Rows of the model's width."""
    for dtype in DTYPES:
        for num_tokens in (512, 4096):
            x = leaf(num_tokens, 768, dtype=dtype)
            contenders = {
                "ours": (lambda x=x: dropout(x, 0.1), [x]),
                "eager": (lambda x=x: F.dropout(x, 0.1), [x]),
            }
            yield Work(f"{num_tokens} tokens x 768, rate 0.1, {dtype}", "GB/s", 4 * x.nbytes, contenders)


if __name__ == "__main__":
    main("dropout", works())
