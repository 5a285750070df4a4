"""A whole training step of DeltaLM-base against the roofline of the same run: `make bench-train_step`.

The roofline is the time of the step's matrix products alone, each at its own shape and dtype, plus 28 bytes a
parameter (Adam's reads and writes in float32) at the measured copy bandwidth. Every row runs in a process of its own,
so its peak memory is honest; rooflines are timed beside the rows they are divided by. All rows are on one device: the
GPU where there is one. There a step is also timed without its end (what the host spends), its kernels are summed up,
and its rate is compared with the card's peak.

    python -m benchmarks.train_step                     all rows; on a CPU 4 x (<= 128, <= 64) tokens and 16 times that
                                                        many, on a GPU 13 and 64 x (512, 114)
    python -m benchmarks.train_step --rows bare-bf16    one row, with where its time goes
"""

import argparse
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.device import DEVICE, ON_GPU, best_seconds, copy_rate, peak_rate, wait
from benchmarks.recording import keep, parser, report, row_of_process
from benchmarks.train_step_kinds import MAKERS, SIZE, VOCABULARY, Parts, make_batch
from deltalm_ds.allocator import keep_freed_memory
from deltalm_ds.kernels.linear import CONTENDERS, contenders
from deltalm_ds.training.step_work import MicroBatch, products

ADAM_BYTES = 28  # a parameter: gradient, weight and two moments read, the last three written
ROW_LIMIT_S = 60.0  # on a GPU, whose time is short
PROFILE_ROWS = 30  # the kernels that take longest, as a table on stderr
NOTE = (
    "bare: a plain loop; engine: DeepSpeed, one rank, ZeRO 1. mbart: transformers' model in the same plain loop; "
    "mbart_kept: with freed memory kept too, as our training does (deltalm_ds/allocator.py), which its users do not "
    "have by themselves. Our forward includes the gradients of the loss."
)
GPU_NOTE = (
    " torch: bare, by PyTorch's own kernels; trainer: the step of `deltalm train`, DeepSpeed included. host ms: until "
    "the host has issued the step; kernels ms: the sum of its kernels."
)


def main() -> None:
    """Run every row in its own process and show the table."""
    options = parser(__doc__)
    options.add_argument("--rows", default=",".join(SIZE.rows), help="which rows, comma-separated")
    options.add_argument("--scales", default=SIZE.scales, help="multiples of the small batch")
    options.add_argument("--steps", type=int, default=10 if ON_GPU else 5, help="timed steps of the small batch")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.worker:
        name, scale = arguments.worker.split(":")
        print(json.dumps(_measure(name, int(scale), arguments.steps)))
        return
    unknown = {row.split("-")[0] for row in arguments.rows.split(",")} - MAKERS.keys()
    if unknown:
        options.error(f"--rows: there is no {', '.join(sorted(unknown))}; there are {', '.join(MAKERS)}")
    rows = []
    for scale in arguments.scales.split(","):
        for name in arguments.rows.split(","):
            rows.append(keep(arguments, "step", _run_worker(name, scale, arguments.steps)))
    title = f"Whole training step, DeltaLM-base, vocabulary {VOCABULARY:,}, on {DEVICE.type}"
    report(arguments, title, "python -m benchmarks.train_step", rows, [NOTE + GPU_NOTE * ON_GPU])


def _run_worker(name: str, scale: str, steps: int) -> dict[str, Any]:
    """A row in a process of its own."""
    command = ["-m", "benchmarks.train_step", "--worker", f"{name}:{scale}", "--steps", str(steps)]
    variables = {"DELTALM_KERNELS": "torch"} if name.startswith("torch") else {}
    return {"row": f"{name} x{scale}", **row_of_process(command, ROW_LIMIT_S if ON_GPU else None, **variables)}


def _measure(name: str, scale: int, steps: int) -> dict[str, Any]:
    kind, precision = name.split("-")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    torch.manual_seed(0)
    if not ON_GPU:
        steps = max(2, steps // scale)
    batch = make_batch(scale)
    parts = Parts()
    step, num_parameters = MAKERS[kind](batch, dtype, parts)
    if kind != "mbart" and not ON_GPU:
        keep_freed_memory()
    for _ in range(3 if ON_GPU else max(1, 2 // scale)):  # the heap has its size after two steps; kernels are compiled
        step()
    wait()
    parts.marks.clear()
    seconds, host = [], []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        host.append(time.perf_counter() - start)
        wait()
        seconds.append(time.perf_counter() - start)
    peak = _peak_gib()  # before the roofline's own tensors
    median = sorted(seconds)[len(seconds) // 2]
    alone, update = _products_seconds(scale, dtype), ADAM_BYTES * num_parameters / copy_rate()
    tokens = SIZE.tokens(scale)
    row = {
        "tokens": tokens,
        "s/step": median,
        "roofline s": alone + update,
        "x roofline": median / (alone + update),
        "tokens/s": tokens / median,
        **{f"{part} s": took / steps for part, took in parts.seconds().items()},
        "products alone s": alone,
        "Adam at copy speed s": update,
        "peak GiB": peak,
    }
    return row | (_of_gpu(step, scale, median, sorted(host)[len(host) // 2]) if ON_GPU else {})


def _peak_gib() -> float:
    if ON_GPU:
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _of_gpu(step: Callable[[], None], scale: int, seconds: float, host: float) -> dict[str, Any]:
    """The host's milliseconds, the sum of the kernels', and the share of the card's peak in 16 bits."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        wait()
    events = profile.key_averages()
    print(
        events.table(sort_by="self_cuda_time_total", row_limit=PROFILE_ROWS, max_name_column_width=60), file=sys.stderr
    )
    kernels = sum(event.self_device_time_total for event in events) / 1e3
    operations = sum(2 * times * b * m * k * n for (b, m, k, n), times in _products(scale).items())
    peak = peak_rate()
    return {"host ms": host * 1e3, "kernels ms": kernels, "MFU": operations / seconds / peak if peak else None}


# --- the roofline ---


def _products(scale: int) -> Counter[tuple[int, int, int, int]]:
    """How often a step multiplies [batch, m, k] by [batch, k, n], forward and backward, per (batch, m, k, n)."""
    config = SIZE.config()
    whole = MicroBatch(scale * sum(SIZE.source), scale * sum(SIZE.target), scale * len(SIZE.source))
    found: Counter[tuple[int, int, int, int]] = Counter()
    for product, times in products(config, whole).items():
        if product.kind != "attention":
            found[product[1:]] += times
    for lengths in zip(SIZE.source, SIZE.target, strict=True):  # attention is of each sequence at its own length
        for product, times in products(config, MicroBatch(*lengths, 1)).items():
            if product.kind == "attention":
                found[product[1:]] += times * scale
    return found


def _products_seconds(scale: int, dtype: torch.dtype) -> float:
    """Every product timed alone, the operands in the layout of a linear layer, by the library that is fastest at it."""
    total = 0.0
    for (batch, m, k, n), times in _products(scale).items():
        a = torch.randn(batch, m, k, device=DEVICE).to(dtype)
        b = torch.randn(batch, n, k, device=DEVICE).to(dtype)
        out = torch.empty(batch, m, n, dtype=dtype, device=DEVICE)
        ways: list[Callable[[], object]] = [partial(torch.bmm, a, b.transpose(1, 2), out=out)]
        if batch == 1:
            ways = [partial(torch.mm, a[0], b[0].T, out=out[0])]
            if not ON_GPU:
                ways += [partial(CONTENDERS[name], a[0], b[0], None) for name in contenders(dtype) if name != "torch"]
        total += times * min(best_seconds(way, 0.02 if ON_GPU else 0.15) for way in ways)
    return total


if __name__ == "__main__":
    main()
