"""What a step of our search would take if nothing but its products and its memory traffic took time.

Every product of a step is timed alone at its very shape, for all rows of the batch, by the library that is fastest at
it; where its weights cannot be read from memory in that time, as with few rows, the time of reading them counts
instead. Attention takes the time of reading the keys and values of the past and the source. Memory is read at the speed
at which this run sums or copies tensors far larger than the caches, whichever is faster. The encoder's time is spread
over the steps.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.device import DEVICE, ON_GPU, TOY, best_seconds, copy_rate, product_rate
from deltalm_ds.kernels.linear import CONTENDERS, FEW_TOKENS, LEAST_ROWS, contenders
from deltalm_ds.kernels.torch_internals import has_onednn_packing, onednn_linear, onednn_packed
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.empty import empty_model

NOTE = (
    "Roofline: the products of a step, each alone at its shape by the fastest library or, where that takes longer, the "
    "time of reading its weights, and reading the caches, at the speed at which memory was read or copied in that run."
)
ENCODER, PRODUCTS, OUTPUT, ATTENTION = "encoder", "products of weights", "output layer", "attention"
AT_LEAST_S = 0.02 if ON_GPU else 0.1  # that each way of a product is timed


def roofline(
    config: DeltaLMConfig, dtype: torch.dtype, source_lengths: Sequence[int], beam: int, length: int
) -> dict[str, float]:
    """Seconds a step by stage, of a search that makes outputs of one length.

    Args:
        config: of the model.
        dtype: of its weights.
        source_lengths: of the sentences, `</s>` included.
        beam: rows of each.
        length: steps but one: the last one adds `</s>`.
    """
    model = empty_model(config)
    every_step = model.step_weights()
    of_steps = {id(weight) for weight in every_step}
    layers = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    once = [weight for weight in layers if id(weight) not in of_steps]
    rows, num_steps, num_source = beam * len(source_lengths), length + 1, sum(source_lengths)
    width, blocks = config.hidden_size, config.num_decoder_blocks
    of_position = 2 * width * dtype.itemsize * blocks  # bytes of keys and values
    past = rows * num_steps * (num_steps + 1) / 2 / num_steps
    scores = config.num_encoder_layers * sum(n * n for n in source_lengths)
    encoder = _seconds(once, num_source, dtype) + 4 * width * scores / product_rate(dtype)
    return {
        ENCODER: encoder / num_steps,
        PRODUCTS: _seconds(every_step[:-1], rows, dtype),
        OUTPUT: _seconds(every_step[-1:], rows, dtype),
        ATTENTION: (past + num_source) * of_position / memory_rate(),
    }


def _seconds(weights: Sequence[torch.Tensor], rows: int, dtype: torch.dtype) -> float:
    """One product of as many rows with each of the weights, of which only the shape counts."""
    shapes = Counter(tuple(weight.shape) for weight in weights)
    return sum(times * _product_seconds(*shape, rows, dtype) for shape, times in shapes.items())


def _product_seconds(outputs: int, inputs: int, rows: int, dtype: torch.dtype) -> float:
    x, weight = (torch.randn(n, inputs, device=DEVICE).to(dtype) for n in (rows, outputs))
    ways: list[Callable[[], object]] = [partial(CONTENDERS["torch"], x, weight, None)]
    if not ON_GPU:
        ways += [partial(CONTENDERS[name], x, weight, None) for name in contenders(dtype) if name != "torch"]
        if has_onednn_packing(dtype):
            filled = torch.cat([x, x.new_zeros(max(0, LEAST_ROWS - rows), inputs)])
            ways.append(partial(onednn_linear, filled, onednn_packed(weight, FEW_TOKENS)))
    with torch.inference_mode():
        alone = min(best_seconds(way, AT_LEAST_S) for way in ways)
    return max(alone, weight.nbytes / memory_rate())


@functools.cache
def memory_rate() -> float:
    """Bytes a second that a sum reads or a copy moves, of memory far larger than the caches."""
    x = torch.ones(1 << 12 if TOY else 1 << 28 if ON_GPU else 1 << 26, device=DEVICE)
    return max(copy_rate(), x.nbytes / best_seconds(x.sum))
