"""Count what Triton would compile of the row-wise ops for many numbers of tokens: `python count_row_compilations.py`.

The real host code runs under a driver that only names an architecture; nothing is compiled or run. Prints a JSON
object: op -> how many, forward and backward, alone and behind residual connections, without and with dropout.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import torch
import triton
from compile_launches import NamedTarget
from torch import Tensor
from triton.runtime.jit import JITFunction

from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.dropout import dropout
from deltalm_ds.kernels.feed_forward import feed_forward
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm, layer_norm

NUM_BATCHES, MOST_TOKENS = 400, 300
M, F = 32, 64  # model dim, ffn dim


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, requires_grad=True)


def norms(num_tokens: int) -> list[Tensor]:
    x, residual, weight, bias = empty(num_tokens, M), empty(num_tokens, M), empty(M), empty(M)
    behind = [dropout_add_layer_norm(x, residual, weight, bias, 1e-5, p) for p in (0.0, 0.1)]
    return [layer_norm(x, weight, bias, 1e-5), *behind]


def feed_forwards(num_tokens: int) -> list[Tensor]:
    inputs = empty(num_tokens, M), empty(F, M), empty(F), empty(M, F), empty(M)
    return [feed_forward(*inputs, p) for p in (0.0, 0.1)]


OUTPUTS: dict[str, Callable[[int], list[Tensor]]] = {
    "layer_norm": norms,
    "feed_forward": feed_forwards,
    "dropout": lambda num_tokens: [dropout(empty(num_tokens, M), 0.1)],
}


def main() -> None:
    """Count, print."""
    triton.runtime.driver.set_active(NamedTarget(90))
    os.environ[dispatch.VARIABLE] = "triton"
    dispatch.compute_capability = lambda device: (9, 0)
    compiled: set[tuple[str, str, str]] = set()

    def count_only(self: Any, key: str, *arguments: Any) -> None:
        compiled.add((self.__module__, self.__name__, key))

    JITFunction._do_compile = count_only
    generator = torch.Generator().manual_seed(0)
    numbers = [1, 16, *torch.randint(1, MOST_TOKENS, (NUM_BATCHES,), generator=generator).tolist()]
    counts: dict[str, int] = {}
    for op, outputs in OUTPUTS.items():
        compiled.clear()
        for num_tokens in numbers:
            for out in outputs(num_tokens):
                out.backward(torch.empty_like(out))
        counts[op] = len(compiled)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
