"""The shared table: `make bench-kernels/embedding`, with `ARGS=--record` to keep it."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import DEVICE, TOY
from benchmarks.kernels.harness import DTYPES, Work, leaf, main
from deltalm_ds.kernels.embedding import shared_embedding

WIDTH, ROWS = (32, 576) if TOY else (768, 250_112)
NUM_TOKENS = (64,) if TOY else (512, 16_384)
Uses = Callable[..., tuple[Tensor, ...]]


def separate(table: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
    """As usually written: autograd sums the gradients of the uses."""
    return table, *(F.embedding(part, table) for part in tokens)


def tokens_of(num_tokens: int) -> Tensor:
    """As frequent as words: the n-th at a rate of 1/n, so that the first is 8 % of all."""
    weights = 1 / torch.arange(1, ROWS + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    return torch.multinomial(weights, num_tokens, replacement=True, generator=generator).to(DEVICE)


def works() -> Iterator[Work]:
    """Source and target of a micro-batch; the table's gradient is written by the output layer's, and the rows read."""
    for dtype in DTYPES:
        table = leaf(ROWS, WIDTH, dtype=dtype)
        for num_tokens in NUM_TOKENS:
            tokens = tokens_of(num_tokens), tokens_of(num_tokens // 4)

            def uses(function: Uses, tokens: tuple[Tensor, ...] = tokens, table: Tensor = table) -> Tensor:
                alias, *rows = function(table, *tokens)
                return torch.cat([2 * alias[:1], *rows])

            contenders = {
                "ours": (lambda uses=uses: uses(shared_embedding), [table]),
                "separate": (lambda uses=uses: uses(separate), [table]),
            }
            num_rows = sum(map(len, tokens))
            amount = table.nbytes * (1 + 4 * num_rows / ROWS)
            yield Work(f"{num_rows:,} rows of {ROWS:,} x {WIDTH}, {dtype}", "GB/s", amount, contenders)


if __name__ == "__main__":
    main("embedding", works())
