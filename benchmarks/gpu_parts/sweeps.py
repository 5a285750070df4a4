"""What the fused kernels could choose otherwise: tiles and stages of attention, strips of the norm, chunks of the loss.

Each is put in the place of the kernels' own choice for a measurement; the fastest of each is a row of its own, to be
compared with what the source has.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.device import DEVICE, ON_GPU, TOY, failure, host_seconds, time_call
from benchmarks.kernels.harness import both_ways, leaf
from benchmarks.recording import FAILED, keep, parser
from deltalm_ds.kernels import linear_cross_entropy as loss_module
from deltalm_ds.kernels.attention import attention
from deltalm_ds.kernels.fused import attention as fused_attention
from deltalm_ds.kernels.fused import layer_norm as fused_norm
from deltalm_ds.kernels.layer_norm import dropout_add_layer_norm

# of each kernel: queries, keys, warps; a compilation of a second each, twice with the stages: few
TILES = {
    "forward": [(128, 64, 8), (128, 128, 8), (64, 64, 4)],
    "gradient of keys and values": [(32, 64, 4), (64, 64, 4), (64, 128, 8)],
    "gradient of queries": [(64, 64, 4), (128, 64, 8), (64, 32, 4)],
}
STAGES, STRIPS, CHUNKS, RATES = (2, 3), (256, 512, 1024, 2048, 4096), (1024, 2048, 4096, 8192), (0.0, 0.1)
if TOY:
    TILES, STRIPS, CHUNKS, RATES = {"forward": [(16, 16, 4)]}, (2,), (4,), (0.0,)
SEQUENCES, LENGTH, HEADS, HEAD_DIM = (2, 8, 2, 16) if TOY else (64, 512, 12, 64)
NUM_ROWS, WIDTH = (8, 32) if TOY else (65536, 768)
LOSS_TOKENS, VOCABULARY, TABLE_ROWS = (8, 515, 576) if TOY else (7296, 250_001, 250_048)
RUNS = 2 if TOY else 7

Choice = tuple[dict[str, Any], Callable[[], float]]  # what it is, and its milliseconds


def median_ms(call: Callable[[], object]) -> float:
    """Of the device alone; the first call compiles."""
    call()
    host = host_seconds(call) if ON_GPU else 0.0
    return sorted(time_call(call, host).seconds for _ in range(RUNS))[RUNS // 2] * 1e3


def attention_choices() -> Iterator[Choice]:
    """Every tile of each kernel, the others as they are."""
    cu = (torch.arange(SEQUENCES + 1) * LENGTH).to(DEVICE, torch.int32)
    inputs = [leaf(SEQUENCES * LENGTH, HEADS, HEAD_DIM, dtype=torch.bfloat16) for _ in range(3)]
    for rate, stages, (number, kernel) in product(RATES, STAGES, enumerate(TILES)):
        for tile in TILES[kernel]:

            def milliseconds(rate: float = rate, stages: int = stages, number: int = number, tile: Any = tile) -> float:
                def forward() -> Tensor:
                    return attention(*inputs, cu, cu, False, rate)

                with ExitStack() as patches:
                    patches.enter_context(_patched_stages(stages))
                    patches.enter_context(_patched_tile(number, tile))
                    return median_ms(forward if number == 0 else both_ways(forward, inputs))

            yield {"of": f"attention, {kernel}, dropout {rate}", "tile": list(tile), "stages": stages}, milliseconds


def _patched_stages(stages: int) -> Any:
    options = fused_attention.Blocks.options
    return patch.object(fused_attention.Blocks, "options", lambda self: {**options(self), "num_stages": stages})


def _patched_tile(number: int, tile: tuple[int, int, int]) -> Any:
    choose = fused_attention._blocks

    def chosen(*arguments: Any) -> tuple[Any, ...]:
        blocks = list(choose(*arguments))
        blocks[number] = fused_attention.Blocks(*tile)
        return tuple(blocks)

    return patch.object(fused_attention, "_blocks", chosen)


def norm_choices() -> Iterator[Choice]:
    """Strips of rows in which gradients of weight and bias are summed."""
    inputs = [
        leaf(*shape, dtype=torch.bfloat16) for shape in ((NUM_ROWS, WIDTH), (NUM_ROWS, WIDTH), (WIDTH,), (WIDTH,))
    ]
    for strips in STRIPS:

        def milliseconds(strips: int = strips) -> float:
            with patch.object(fused_norm, "NUM_STRIPS", strips):
                return median_ms(both_ways(lambda: dropout_add_layer_norm(*inputs, 1e-5, 0.1), inputs))

        yield {"of": "layer_norm, dropout 0.1", "strips": strips}, milliseconds


def loss_choices() -> Iterator[Choice]:
    """Tokens whose logits exist at once; and the two ways to sum the weight's gradient over chunks."""
    hidden, weight = leaf(LOSS_TOKENS, WIDTH, dtype=torch.bfloat16), leaf(TABLE_ROWS, WIDTH, dtype=torch.bfloat16)
    weight.data /= WIDTH**0.5
    labels = torch.randint(VOCABULARY, (LOSS_TOKENS,), device=DEVICE)

    def forward() -> Tensor:
        return loss_module.linear_cross_entropy(hidden, weight, labels, VOCABULARY, 0.1).loss

    for chunk in CHUNKS:

        def milliseconds(chunk: int = chunk) -> float:
            with ExitStack() as patches:
                patches.enter_context(patch.object(loss_module, "CHUNK_TOKENS", chunk))
                patches.enter_context(patch.object(loss_module, "CHUNK_BYTES", 1 << 40))  # which is less at times
                return median_ms(both_ways(forward, [hidden, weight]))

        yield {"of": "linear_cross_entropy", "chunk": chunk}, milliseconds
    grad = torch.randn(min(2048, LOSS_TOKENS), TABLE_ROWS, device=DEVICE).bfloat16()
    rows, total = hidden.detach()[: len(grad)], torch.zeros(TABLE_ROWS, WIDTH, device=DEVICE)
    apart = {"of": "weight gradient of a chunk", "way": "a product, then added"}
    yield apart, lambda: median_ms(lambda: total.add_(grad.T @ rows))
    if not ON_GPU:  # PyTorch has it there alone
        return
    at_once = {"of": "weight gradient of a chunk", "way": "addmm into float32"}
    yield at_once, lambda: median_ms(lambda: torch.addmm(total, grad.T, rows, out_dtype=torch.float32, out=total))


def sweep(arguments: argparse.Namespace, choices: Iterator[Choice]) -> None:
    """Measure every choice, and say which is the fastest of its kind."""
    best: dict[str, dict[str, Any]] = {}
    for choice, milliseconds in choices:
        try:
            row = {**choice, "ms": milliseconds()}
        except Exception as error:  # a tile that does not fit, say
            keep(arguments, "sweeps", {**choice, FAILED: failure(error)})
            continue
        keep(arguments, "sweeps", row)
        if row["of"] not in best or row["ms"] < best[row["of"]]["ms"]:
            best[row["of"]] = row
    for row in best.values():
        keep(arguments, "sweeps", {**row, "best": True})


def main() -> None:
    """Sweep all three."""
    arguments = parser(__doc__).parse_args()
    for choices in (loss_choices, norm_choices, attention_choices):
        try:
            sweep(arguments, choices())
        except Exception as error:  # its inputs do not fit
            keep(arguments, "sweeps", {"of": choices.__name__, FAILED: failure(error)})


if __name__ == "__main__":
    main()
