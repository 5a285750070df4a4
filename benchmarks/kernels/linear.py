"""The product of a linear layer and its gradients by every library: `make bench-kernels/linear`, with `ARGS=--record`.

One row a product and shape of the base model, few and many tokens: the rate of each contender, the fastest of them
(the roof that other benchmarks should divide by), what `deltalm env` would choose, and the peak of the processor's
arithmetic. `packed` is oneDNN with a weight brought into its own order once: for frozen weights, at the price of a
second copy of them. The clock is the processor time of all threads, which sleep while they wait. The rows come once
with all instructions of the processor and once with AVX2 alone, each from a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.recording import parser, report
from deltalm_ds.allocator import keep_freed_memory
from deltalm_ds.kernels.linear import CONTENDERS, PRODUCTS, contenders, fastest
from deltalm_ds.kernels.torch_internals import has_onednn_packing, onednn_linear, onednn_packed
from deltalm_ds.threads import WAITING

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
LAYERS = ((768, 768), (2304, 768), (3072, 768), (768, 3072), (250_001, 768))  # outputs, inputs
FROZEN, PACKED = "frozen", "packed"  # the forward with a weight that never changes, and who computes it best
TOKENS = (1, 6, 80, 205, 614, 2048)
MAX_LOGITS = 1 << 28  # more are not measured: they take minutes and gigabytes
SECONDS, MIN_ROUNDS = 0.5, 3  # of a row


def main() -> None:
    """Measure every product, in a process for each set of instructions, and report it."""
    options = parser(__doc__)
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        keep_freed_memory()
        print(json.dumps([row for dtype in (torch.float32, torch.bfloat16) for row in _rows(dtype)]))
        return
    rows = []
    for limits in ({}, AVX2):
        command = [sys.executable, "-m", "benchmarks.kernels.linear", "--worker"]
        environment = os.environ | WAITING | limits
        worker = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        rows += json.loads(worker.stdout.splitlines()[-1])
    title = f"Linear layers by library, {torch.get_num_threads()} threads"
    note = "GFLOP/s of processor time, the best of several rounds in turn. chosen: torch unless another is 3 % faster. "
    note += _peak()
    report(arguments, title, "make bench-kernels/linear", rows, [note])


def _rows(dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    if len(contenders(dtype)) == 1:
        return  # nothing to compare
    for outputs, inputs in LAYERS:
        for tokens in TOKENS:
            if tokens * outputs <= MAX_LOGITS:
                x, weight, grad = (torch.randn(size).to(dtype) for size in _sizes(tokens, outputs, inputs))
                for product in (*PRODUCTS, FROZEN):
                    rates = _rates(product, x, weight, grad)
                    yield _row(f"{product} {tokens} x {inputs} x {outputs}, {dtype}", rates)


def _sizes(tokens: int, outputs: int, inputs: int) -> tuple[tuple[int, int], ...]:
    return (tokens, inputs), (outputs, inputs), (tokens, outputs)


def _row(name: str, rates: dict[str, float]) -> dict[str, Any]:
    return {
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "product": name,
        **{contender: rates.get(contender, "") for contender in (*CONTENDERS, PACKED)},
        "chosen": fastest(rates),
        "chosen / torch": rates[fastest(rates)] / rates["torch"],
    }


def _rates(product: str, x: Tensor, weight: Tensor, grad: Tensor) -> dict[str, float]:
    """GFLOP/s by contender."""
    operands = {"input_gradient": (grad, weight.T), "weight_gradient": (grad.T, x.T)}
    a, b = operands.get(product, (x, weight))
    calls: dict[str, Callable[[], Tensor]] = {
        name: lambda multiply=CONTENDERS[name]: multiply(a, b, None) for name in contenders(x.dtype)
    }
    if product == FROZEN and has_onednn_packing(x.dtype):
        packed = onednn_packed(weight, len(x))
        calls[PACKED] = lambda: onednn_linear(x, packed)
    best = dict.fromkeys(calls, float("inf"))
    start, number = time.perf_counter(), 0
    while number < MIN_ROUNDS or time.perf_counter() - start < SECONDS:
        for name in sorted(calls, reverse=number % 2 == 1):
            best[name] = min(best[name], _seconds(calls[name]))
        number += 1
    billions = 2e-9 * x.numel() * weight.shape[0]
    return {name: billions / seconds for name, seconds in best.items()}


def _seconds(call: Callable[[], Tensor]) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) / torch.get_num_threads()


def _peak() -> str:
    """The arithmetic peak, where the system tells the clock: 32 float32 operations a cycle and core (2 x 8 FMA)."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", encoding="ascii") as file:
            hertz = int(file.read()) * 1e3
    except OSError:
        return "The system does not tell the processor's highest clock, so its arithmetic peak is not known."
    peak = 32 * hertz * torch.get_num_threads() / 1e9
    return f"Arithmetic peak in float32 with 256 bits of multiply-add twice a cycle: {peak:,.0f} GFLOP/s."


if __name__ == "__main__":
    main()
