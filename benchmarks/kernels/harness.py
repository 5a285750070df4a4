"""Measure contenders for the same work side by side: forward and backward time, rate, share of the ceiling, memory.

The ceiling is measured in the same run: the rate of a large copy for works in bytes, of large matrix products of the
same dtype for works in floating-point operations. On a CPU all run as training does, with freed memory kept.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.recording import parser, report
from deltalm_ds.allocator import keep_freed_memory

ROUNDS = 7
NOTE = (
    "ms: median of 7 runs in turn. Ceiling: a large matrix product or copy of the same run. "
    "Peak extra: the most that forward and backward allocate at once, without the gradients they return."
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.bfloat16,) if DEVICE.type == "cuda" else (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Work:
    """One setting.

    amount: bytes or floating-point operations of forward and backward, at the least. contenders: name -> (forward,
    inputs that get a gradient, if any), ours first.
    """

    name: str
    unit: str  # GB/s or GFLOP/s
    amount: float
    contenders: dict[str, tuple[Callable[[], Tensor], list[Tensor]]]


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    """Normal random numbers on the device, to be differentiated."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype).requires_grad_()


def main(op: str, works: Iterable[Work]) -> None:
    """Measure every work, one after the other, and report it."""
    arguments = parser(f"{op}: ours against its peers, forward and backward.").parse_args()
    keep_freed_memory()
    rows = [row for work in works for row in _measure(work)]
    title = f"Kernel {op} on {DEVICE.type}, {torch.get_num_threads()} threads, forward and backward"
    report(arguments, title, f"make bench-kernels/{op}", rows, [NOTE])


def _measure(work: Work) -> list[dict[str, Any]]:
    memory = {name: _peak_extra_bytes(*contender) for name, contender in work.contenders.items()}  # and warm up
    times: dict[str, list[float]] = {name: [] for name in work.contenders}
    for _ in range(ROUNDS):  # in turn, so that a change of the machine's speed meets all
        for name, contender in work.contenders.items():
            times[name].append(_seconds(lambda contender=contender: _run(*contender)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours = next(iter(medians.values()))
    rows = []
    for name, median in medians.items():
        inputs = work.contenders[name][1]
        ceiling = _copy_rate() if work.unit == "GB/s" else _product_rate(inputs[0].dtype)
        rows.append(
            {
                "setting": work.name,
                "contender": name,
                "ms": median * 1e3,
                "best ms": min(times[name]) * 1e3,
                work.unit: work.amount / median / 1e9,
                "of the ceiling": work.amount / median / ceiling,
                "peak extra MB": memory[name] / 1e6,
                "ours / it": ours / median,
            }
        )
    return rows


def _run(forward: Callable[[], Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients of the inputs."""
    out = forward()
    return torch.autograd.grad(out, inputs, torch.ones_like(out)) if inputs else ()


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@functools.cache
def _copy_rate() -> float:
    """Bytes read and written a second by a copy far larger than the caches."""
    source = torch.ones(1 << 26, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(ROUNDS))


@functools.cache
def _product_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if DEVICE.type == "cuda" else 2048
    a, b, out = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(3))
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, b, out=out)) for _ in range(ROUNDS))


def _peak_extra_bytes(forward: Callable[[], Tensor], inputs: list[Tensor]) -> int:
    """The most that the second run's tensors hold at once beside the gradients; the first one loads and compiles."""
    _run(forward, inputs)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = _run(forward, inputs)
        return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in gradients)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        gradients = _run(forward, inputs)
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak - sum(x.nbytes for x in gradients)
