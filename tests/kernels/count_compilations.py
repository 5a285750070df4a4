"""Count what Triton would compile of ops for many micro-batches, or steps of a search: `python count_compilations.py`.

The real host code runs under a driver that only names an architecture; nothing is compiled or run. Prints a JSON
object: op -> how many kernels, forward and backward, in the forms that a training has.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from deltalm_ds.kernels.ahead_of_time import pretend
from deltalm_ds.kernels.attention import cross_attention, self_attention
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.feed_forward import feed_forward
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm, layer_norm
from deltalm_ds.kernels.top_k import top_k

NUM_BATCHES, MOST_TOKENS = 400, 300
MOST_SEQUENCES, LONGEST = 600, 64
M, F = 32, 64  # model dim, ffn dim
H, D = 12, 64  # heads, head dim

RANDOM = torch.Generator().manual_seed(0)


def below(limit: int, least: int = 1) -> int:
    return int(torch.randint(least, limit, (), generator=RANDOM))


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, requires_grad=True)


def cumulative(num_sequences: int) -> Tensor:
    """[B + 1] int32 of random lengths, behind 0 to 3 other numbers, as where a batch is copied in one piece."""
    lengths = torch.randint(1, LONGEST + 1, (num_sequences,), generator=RANDOM)
    offset = below(4, least=0)
    return torch.cat([torch.zeros(offset + 1), lengths.cumsum(0)]).int()[offset:]


def attentions() -> list[Tensor]:
    """Self-attention, causal and not, and cross-attention."""
    num_sequences = below(MOST_SEQUENCES)
    source, target = (cumulative(num_sequences) for _ in range(2))
    num_source, num_target = int(source[-1]), int(target[-1])
    return [
        self_attention(empty(num_source, 3, H, D), source, LONGEST, False, 0.1),
        self_attention(empty(num_target, 3, H, D), target, LONGEST, True, 0.1),
        cross_attention(empty(num_target, H, D), empty(num_source, 2, H, D), target, source, LONGEST, LONGEST, 0.1),
    ]


def norms() -> list[Tensor]:
    """Alone, and behind residual connections without and with dropout."""
    num_tokens = below(MOST_TOKENS)
    x, residual, weight, bias = empty(num_tokens, M), empty(num_tokens, M), empty(M), empty(M)
    behind = [dropout_add_layer_norm(x, residual, weight, bias, 1e-5, p) for p in (0.0, 0.1)]
    return [layer_norm(x, weight, bias, 1e-5), *behind]


def feed_forwards() -> list[Tensor]:
    """Without and with dropout."""
    inputs = empty(below(MOST_TOKENS), M), empty(F, M), empty(F), empty(M, F), empty(M)
    return [feed_forward(*inputs, p) for p in (0.0, 0.1)]


def searches() -> list[Tensor]:
    """Any number of banned tokens, which become more with every step."""
    logits, num_banned = torch.empty(10, 3000), below(40)
    found = top_k(logits, torch.empty(2, 5), 10, torch.ones(10, num_banned, dtype=torch.int64))
    return [found.scores]


OUTPUTS: dict[str, Callable[[], list[Tensor]]] = {
    "attention": attentions,
    "layer_norm": norms,
    "feed_forward": feed_forwards,
    "dropout": lambda: [dropout(empty(below(MOST_TOKENS), M), 0.1)],
    "top_k": searches,
}


def main() -> None:
    """Count, print."""
    pretend(90)
    compiled: set[tuple[str, str, str]] = set()

    def count_only(self: Any, key: str, *arguments: Any) -> None:
        compiled.add((self.__module__, self.__name__, key))

    JITFunction._do_compile = count_only
    counts: dict[str, int] = {}
    for op, outputs in OUTPUTS.items():
        compiled.clear()
        for _ in range(NUM_BATCHES):
            for out in outputs():
                if out.requires_grad:
                    out.backward(torch.empty_like(out))
        counts[op] = len(compiled)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
