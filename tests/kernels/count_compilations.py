"""Count what Triton would compile of attention for many micro-batches: `python count_compilations.py`.

Forward and backward of self-attention, causal self-attention and cross-attention, in the shapes of the base model. The
real host code runs under a driver that only names an architecture; nothing is compiled or run. Prints the number.
"""

import os
from typing import Any

import torch
import triton
from compile_launches import NamedTarget
from triton.runtime.jit import JITFunction

from deltalm_ds.kernels import dispatch
from deltalm_ds.kernels.attention import cross_attention, self_attention

NUM_BATCHES, NUM_HEADS, HEAD_DIM = 400, 12, 64
MOST_SEQUENCES, LONGEST = 600, 64


def cumulative(num_sequences: int, generator: torch.Generator) -> torch.Tensor:
    """[B + 1] int32 of random lengths."""
    cu_seqlens = torch.zeros(num_sequences + 1, dtype=torch.int32)
    cu_seqlens[1:] = torch.randint(1, LONGEST + 1, (num_sequences,), generator=generator).cumsum(0)
    return cu_seqlens


def unaligned(cu_seqlens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The same behind 0 to 3 other numbers, as where a batch is copied in one piece."""
    offset = int(torch.randint(4, (), generator=generator))
    return torch.cat([cu_seqlens[:offset], cu_seqlens])[offset:]


def micro_batch(generator: torch.Generator) -> None:
    """Forward and backward of the three kinds of attention."""
    num_sequences = int(torch.randint(1, MOST_SEQUENCES, (), generator=generator))
    source, target = (unaligned(cumulative(num_sequences, generator), generator) for _ in range(2))
    num_source, num_target = int(source[-1]), int(target[-1])

    def projection(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True)

    outputs = [
        self_attention(projection(num_source, 3), source, LONGEST, False, 0.1),
        self_attention(projection(num_target, 3), target, LONGEST, True, 0.1),
        cross_attention(projection(num_target), projection(num_source, 2), target, source, LONGEST, LONGEST, 0.1),
    ]
    for out in outputs:
        out.backward(torch.empty_like(out))


def main() -> None:
    """Count, print."""
    triton.runtime.driver.set_active(NamedTarget(90))
    os.environ[dispatch.VARIABLE] = "triton"
    dispatch.compute_capability = lambda device: (9, 0)
    compiled: set[tuple[str, str]] = set()

    def count_only(self: Any, key: str, *arguments: Any) -> None:
        compiled.add((self.__name__, key))

    JITFunction._do_compile = count_only
    generator = torch.Generator().manual_seed(0)
    for _ in range(NUM_BATCHES):
        micro_batch(generator)
    print(len(compiled))


if __name__ == "__main__":
    main()
