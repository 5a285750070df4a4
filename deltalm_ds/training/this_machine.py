"""This machine's processor as a machine to plan for: its rates of products, of a copy and of calls, measured now.

Products are measured at the shapes that are asked for, cut down to some hundred rows and some thousand columns, beyond
which their rate stays, and with operands that caches have not got; some seconds in all. The clock is the processor time
of all threads, as in `kernels/linear_rates.py`.
"""

import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from typing import Any

import torch

from deltalm_ds.kernels.linear import CONTENDERS, MANY_OUTPUTS, contenders
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.training.step_work import Product

ROWS = 768  # of a product that is measured, at most
MANY_BATCHES = 64
ROUNDS = 3  # the first one warms up
COPY_ELEMENTS = 1 << 25
CACHES_BYTES = 1 << 26  # a product's operands are those of other layers in turn: caches do not have them any more
HOOK_S = 4e-4  # for each parameter and micro-batch: DeepSpeed's hooks and what they compute, in a profile of a step
PASS_SHARE = 0.4  # of a copy's rate that passes with dropout reach: 0.36 to 0.4 by the kernels' benchmarks (RESULTS.md)


class ThisMachine:
    """The processor, in the number of threads that torch has, computing in `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._rate = cache(self._measured_rate)
        self._calls = cache(_calling_seconds)

    def product_seconds(self, product: Product) -> float:
        """See `step_time.Machine`."""
        tokens = {"forward": "m", "input_gradient": "m", "weight_gradient": "k"}.get(product.kind)
        limits = {name: ROWS if name == tokens else MANY_OUTPUTS for name in ("m", "k", "n")}
        smaller = {name: min(getattr(product, name), limit) for name, limit in limits.items()}
        return product.operations / self._rate(product._replace(batch=min(product.batch, MANY_BATCHES), **smaller))

    def pass_seconds(self, num_bytes: float) -> float:
        """See `step_time.Machine`."""
        return num_bytes / (PASS_SHARE * self.copy_rate)

    def update_seconds(self, num_bytes: float) -> float:
        """See `step_time.Machine`."""
        return num_bytes / self.copy_rate

    def calling_seconds(self, device_seconds: float, config: DeltaLMConfig, num_tensors: int) -> float:
        """See `step_time.Machine`: there is no other processor that would compute meanwhile."""
        layers = config.num_encoder_layers, config.num_decoder_blocks
        return self._calls(config.decoder, *layers) + HOOK_S * num_tensors

    @cached_property
    def copy_rate(self) -> float:
        """Bytes read and written a second by a copy larger than the caches."""
        source = torch.ones(COPY_ELEMENTS)
        target = torch.empty_like(source)
        return 2 * source.nbytes / _least_seconds(lambda: target.copy_(source))

    @torch.no_grad()
    def _measured_rate(self, product: Product) -> float:
        """Operations a second, by the library that is fastest."""
        times = max(1, int(CACHES_BYTES / product.bytes_moved(self._dtype.itemsize)))
        a = torch.ones(times, product.batch, product.m, product.k, dtype=self._dtype)
        b = torch.ones(times, product.batch, product.n, product.k, dtype=self._dtype)
        ways: list[Callable[[], Any]]
        if product.batch > 1:
            ways = [lambda: [torch.bmm(left, right.transpose(1, 2)) for left, right in zip(a, b, strict=True)]]
        else:
            pairs = [_strided(left[0], right[0], product.kind) for left, right in zip(a, b, strict=True)]
            ways = [partial(_each, CONTENDERS[name], pairs) for name in contenders(self._dtype)]
        return times * product.operations / min(map(_least_seconds, ways))


@cache
def this_machine(dtype: torch.dtype) -> ThisMachine:
    """The processor, whose rates are measured as they are asked for, each once."""
    return ThisMachine(dtype)


def _each(multiply: Callable[..., Any], pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for left, right in pairs:
        multiply(left, right, None)


def _strided(a: torch.Tensor, b: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The operands in the order in which a linear layer's product finds them."""
    if kind == "weight_gradient":
        a = a.T.contiguous().T
    return (a, b) if kind == "forward" else (a, b.T.contiguous().T)


def _least_seconds(call: Callable[[], Any]) -> float:
    """Processor seconds of a call by each thread, the least of several."""
    least = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        least = min(least, max(time.process_time() - start, 1e-9))
    return least / torch.get_num_threads()


def _calling_seconds(decoder: str, num_encoder_layers: int, num_decoder_blocks: int) -> float:
    """Forward and backward of as many layers, so narrow that nothing but the calls takes time; of one thread."""
    layers = {"num_encoder_layers": num_encoder_layers, "num_decoder_blocks": num_decoder_blocks, "decoder": decoder}
    narrow = {"hidden_size": 16, "ffn_size": 16, "num_heads": 1, "vocabulary_size": 64, "max_positions": 16}
    model = DeltaLM(DeltaLMConfig.preset("tiny", **narrow, **layers)).train()
    tokens = torch.full((8,), 5)
    side = PackedSequences.from_lengths(tokens, torch.tensor([8]))
    return _least_seconds(lambda: model(side, side, tokens, 0.1)[0].backward()) * torch.get_num_threads()
