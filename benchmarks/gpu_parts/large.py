"""Ops at real sizes against their definitions: long and empty sequences, many chunks, frequent tokens, 2^31 elements.

The error of a tensor is ‖found - expected‖ / ‖expected‖, the expected computed in float64, or in float32 where that is
too large. Legend: T tokens, M model dim, F ffn dim, H heads, D head dim, V vocabulary.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.device import DEVICE, TOY, failure
from benchmarks.recording import FAILED, keep, parser
from deltalm_ds.kernels import reference
from deltalm_ds.kernels.attention import attention
from deltalm_ds.kernels.embedding import shared_embedding
from deltalm_ds.kernels.feed_forward import feed_forward
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm
from deltalm_ds.kernels.linear_cross_entropy import linear_cross_entropy
from deltalm_ds.kernels.reference import IGNORED_LABEL

LIMIT = 1e-2  # one rounding to bfloat16 is 2e-3 on average; sums made in it would be far off
SUM_LIMIT = 4e-3  # of a sum that is rounded once
WIDTH, FFN, HEADS, HEAD_DIM = (64, 128, 2, 64) if TOY else (768, 3072, 12, 64)
VOCABULARY, ROWS = (515, 576) if TOY else (250_001, 250_048)
LENGTHS = [8, 0, 3] if TOY else [512] * 8 + [1, 511, 300, 0, 17]
LOSS_TOKENS, LOSS_PART = (64, 20) if TOY else (20_000, 500)  # more than two chunks of any size that the op may have
REPEATS = 300 if TOY else 4096
ELEMENTS = 1 << 13 if TOY else 2**31  # beyond what 32 bits count
LAST_ROWS = 64  # which are compared, where all are too many

Compared = tuple[list[Tensor], list[Tensor], float]  # found, expected, the largest error allowed


def leaf(*shape: int, scale: float = 1.0) -> Tensor:
    """bfloat16, to be differentiated."""
    return (torch.randn(*shape, device=DEVICE) * scale).bfloat16().requires_grad_()


def attention_of_many_lengths(causal: bool) -> Compared:
    """Value and gradients of self-attention."""
    cu = F.pad(torch.tensor(LENGTHS).cumsum(0), (1, 0)).to(DEVICE, torch.int32)
    inputs = [leaf(sum(LENGTHS), HEADS, HEAD_DIM) for _ in range(3)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    value, expected = attention(*inputs, cu, cu, causal), reference.attention(*wide, cu, cu, causal, 0.0, None)
    grad = torch.randn_like(value)
    found = [value, *torch.autograd.grad(value, inputs, grad)]
    return found, [expected, *torch.autograd.grad(expected, wide, grad.double())], LIMIT


def loss_in_chunks() -> Compared:
    """Loss and gradients over several chunks, against the definition a part at a time."""
    hidden, weight = leaf(LOSS_TOKENS, WIDTH), leaf(ROWS, WIDTH, scale=WIDTH**-0.5)
    labels = torch.randint(VOCABULARY, (LOSS_TOKENS,), device=DEVICE)
    labels[::7] = IGNORED_LABEL
    loss = linear_cross_entropy(hidden, weight, labels, VOCABULARY, 0.1).loss
    found = [loss, *torch.autograd.grad(loss, (hidden, weight))]
    wide = weight.detach().float().requires_grad_()
    total, grads, grad_weight = torch.zeros((), device=DEVICE), [], torch.zeros_like(wide)
    for rows, part in zip(hidden.detach().split(LOSS_PART), labels.split(LOSS_PART), strict=True):
        h = rows.float().requires_grad_()
        expected = reference.linear_cross_entropy(h, wide, part, VOCABULARY, 0.1)[0]
        of_h, of_weight = torch.autograd.grad(expected, (h, wide))
        total += expected.detach()
        grads.append(of_h)
        grad_weight += of_weight
    return found, [total, torch.cat(grads), grad_weight], LIMIT


def frequent_token() -> Compared:
    """The gradient of a row that thousands of tokens picked, on top of the output layer's."""
    table, tokens = leaf(LAST_ROWS, WIDTH), torch.zeros(REPEATS, dtype=torch.int64, device=DEVICE)
    alias, picked = shared_embedding(table, tokens)
    of_head, of_rows = torch.randn_like(alias), torch.randn_like(picked) * 0.02 + 0.01
    expected = of_head.double()[0] + of_rows.double().sum(0)  # first: the op may add to of_head in place
    (grad,) = torch.autograd.grad([alias, picked], table, [of_head, of_rows])
    return [grad[0]], [expected], SUM_LIMIT


@torch.no_grad()
def large_feed_forward() -> Compared:
    """[T, F] has more elements than 32 bits count; the last rows are compared."""
    num_tokens, width = ELEMENTS // FFN + 4096, 64
    weights = [leaf(FFN, width, scale=0.1), leaf(FFN), leaf(width, FFN, scale=0.1), leaf(width)]
    x = leaf(num_tokens, width)
    expected = reference.feed_forward(x[-LAST_ROWS:].float(), *(w.float() for w in weights), 0.0, None)
    return [feed_forward(x, *weights)[-LAST_ROWS:]], [expected], LIMIT


def large_norm() -> Compared:
    """[T, M] has more elements than 32 bits count; the last rows of value and gradients are compared."""
    num_tokens = ELEMENTS // WIDTH + 4096
    x, residual, weight, bias = leaf(num_tokens, WIDTH), leaf(num_tokens, WIDTH), leaf(WIDTH), leaf(WIDTH)
    value = dropout_add_layer_norm(x, residual, weight, bias, 1e-5)
    grads = torch.autograd.grad(value, (x, residual), value.detach())
    found = [tensor[-LAST_ROWS:] for tensor in (value.detach(), *grads)]
    wide = [t.detach().float().requires_grad_() for t in (x[-LAST_ROWS:], residual[-LAST_ROWS:])]
    expected = reference.layer_norm(wide[0] + wide[1], weight.detach().float(), bias.detach().float(), 1e-5)
    return found, [expected, *torch.autograd.grad(expected, wide, found[0].float())], LIMIT


def checks() -> Iterator[tuple[str, Callable[[], Compared]]]:
    """Every comparison by its name."""
    yield "attention of lengths 0 to 512, full", lambda: attention_of_many_lengths(False)
    yield "attention of lengths 0 to 512, causal", lambda: attention_of_many_lengths(True)
    yield f"loss of {LOSS_TOKENS:,} tokens in chunks", loss_in_chunks
    yield f"embedding, a token {REPEATS:,} times", frequent_token
    yield "feed_forward beyond 2^31 elements", large_feed_forward
    yield "layer_norm beyond 2^31 elements", large_norm


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """‖found - expected‖ / ‖expected‖ of each tensor; nan and inf stay."""
    return [
        ((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm().clamp(min=1e-30)).item()
        for a, b in zip(found, expected, strict=True)
    ]


def check(arguments: argparse.Namespace, name: str, compared: Callable[[], Compared]) -> None:
    """Compare, and keep the row."""
    torch.manual_seed(0)
    try:
        found, expected, limit = compared()
        worst = errors(found, expected)
        ok = all(error <= limit for error in worst)
        keep(arguments, "large", {"what": name, "errors": [float(f"{e:.2g}") for e in worst], "limit": limit, "ok": ok})
    except Exception as error:  # too little memory, or a kernel that cannot be launched: the next check may run
        keep(arguments, "large", {"what": name, FAILED: failure(error), "ok": False})


def main() -> None:
    """Run every check."""
    arguments = parser(__doc__).parse_args()
    for name, compared in checks():
        check(arguments, name, compared)


if __name__ == "__main__":
    main()
