"""How fast each contender of `linear.py` multiplies, measured in about two seconds.

The clock is the processor time of all threads, so that it does not count what a busy neighbour takes. That holds where
waiting threads sleep, as entry points see to (`deltalm_ds/threads.py`).

Legend: T tokens, K inputs and N outputs of a layer.
"""

import time
from collections.abc import Iterable

import torch

from deltalm_ds.kernels.linear import (
    CONTENDERS,
    FEW_TOKENS,
    MANY_OUTPUTS,
    Layer,
    Rates,
    class_of,
    contenders,
)

TOKENS = (FEW_TOKENS, 384)  # measured for few and for many
MIN_ROUNDS, MAX_ROUNDS = 2, 7  # the first one compiles and warms up
MIN_BILLIONS = 0.5  # operations a round and class: what is small is computed several times
SECONDS = 2.0  # no round starts later, when there were enough


def classes(layers: Iterable[Layer], products: Iterable[str]) -> dict[str, tuple[str, int, Layer]]:
    """The classes of these products by name: product, number of tokens to measure with, layer.

    The weight's gradient of an output layer is not among them: the loss adds it up in place, which PyTorch alone can.
    """
    cases = [(product, tokens, layer) for layer in layers for tokens in TOKENS for product in products]
    return {
        class_of(product, tokens, layer): (product, tokens, layer)
        for product, tokens, layer in cases
        if product != "weight_gradient" or layer.outputs <= MANY_OUTPUTS
    }


@torch.no_grad()
def measure(cases: dict[str, tuple[str, int, Layer]]) -> Rates:
    """GFLOP/s of every contender in each of the classes, the best of several rounds. They take turns in going first."""
    best = {name: dict.fromkeys(contenders(layer.dtype), 0.0) for name, (_, _, layer) in cases.items()}
    start = time.perf_counter()
    for number in range(MAX_ROUNDS):
        if number >= MIN_ROUNDS and time.perf_counter() - start > SECONDS:
            break
        for name, case in cases.items():
            _measure_once(case, best[name], is_reversed=number % 2 == 1)
    return {name: {contender: round(rate, 1) for contender, rate in rates.items()} for name, rates in best.items()}


def _measure_once(case: tuple[str, int, Layer], best: dict[str, float], is_reversed: bool) -> None:
    product, num_tokens, layer = case
    num_outputs = min(layer.outputs, MANY_OUTPUTS)
    x = torch.ones(num_tokens, layer.inputs, dtype=layer.dtype)
    weight = torch.ones(num_outputs, layer.inputs, dtype=layer.dtype)
    grad = torch.ones(num_tokens, num_outputs, dtype=layer.dtype)
    operands = {"input_gradient": (grad, weight.T), "weight_gradient": (grad.T, x.T)}
    a, b = operands.get(product, (x, weight))
    billions = 2e-9 * num_tokens * num_outputs * layer.inputs
    repeats = max(1, round(MIN_BILLIONS / billions))
    for name in sorted(best, reverse=is_reversed) * repeats:
        start = time.process_time()
        CONTENDERS[name](a, b, None)
        seconds = max(time.process_time() - start, 1e-9) / torch.get_num_threads()
        best[name] = max(best[name], billions / seconds)
