"""Measure contenders for the same work side by side: forward and backward time, rate, share of the ceiling, memory.

The ceiling is measured in the same run: the rate of a large copy for works in bytes, of large matrix products of the
same dtype for works in floating-point operations. On a CPU all run as training does, with freed memory kept; on a GPU
times are the device's own, and what the host spends on a call stands beside them.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.device import DEVICE, ON_GPU, TOY, copy_rate, failure, host_seconds, product_rate, time_call
from benchmarks.recording import FAILED, keep, parser, report
from deltalm_ds.allocator import keep_freed_memory

ROUNDS = 2 if TOY else 7
LONG, LONG_ROUNDS = 1e12, 2  # on a CPU: operations of a work that takes long, and its rounds
NOTE = (
    f"ms: median of {ROUNDS} runs in turn (on a CPU {LONG_ROUNDS} from 1 TFLOP on). "
    "Ceiling: a large matrix product or copy of the same run. "
    "Peak extra: the most that forward and backward allocate at once, without the gradients they return."
)
GPU_NOTE = (
    " Device time alone, by events, the L2 cache flushed in front of every run; host µs: what the host spends on a "
    "call. waited: the device had to wait for the host, so that its time is not its own."
)
DTYPES = (torch.bfloat16,) if ON_GPU else (torch.float32, torch.bfloat16)

Contender = tuple[Callable[[], Tensor], list[Tensor]]


@dataclass(frozen=True)
class Work:
    """One setting.

    amount: bytes or floating-point operations of forward and backward, at the least. contenders: name -> (forward,
    inputs that get a gradient, if any), ours first.
    """

    name: str
    unit: str  # GB/s or GFLOP/s
    amount: float
    contenders: dict[str, Contender]


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    """Normal random numbers on the device, to be differentiated."""
    return torch.randn(*shape, device=DEVICE, dtype=dtype).requires_grad_()


def on_gpu(contenders: dict[str, Contender]) -> dict[str, Contender]:
    """Peers that there are on a GPU only, to add to those of everywhere."""
    return contenders if ON_GPU else {}


def main(op: str, works: Iterable[Work]) -> None:
    """Measure every work, one after the other, and report it."""
    arguments = parser(f"{op}: ours against its peers, forward and backward.").parse_args()
    keep_freed_memory()
    rows = [keep(arguments, "kernels", {"op": op, **row}) for work in works for row in measure(work)]
    title = f"Kernel {op} on {DEVICE.type}, {torch.get_num_threads()} threads, forward and backward"
    shown = [{name: value for name, value in row.items() if name != "op"} for row in rows]
    report(arguments, title, f"python -m benchmarks.kernels.{op}", shown, [NOTE + GPU_NOTE * ON_GPU])


def measure(work: Work) -> Iterator[dict[str, Any]]:
    """A row for each contender; one that cannot run has a reason in its place."""
    memory, calls, hosts, failed = {}, {}, {}, {}
    for name, contender in work.contenders.items():
        try:
            call = both_ways(*contender)
            memory[name] = _peak_extra_bytes(call)  # and warm up
            hosts[name] = host_seconds(call) if ON_GPU else 0.0
            calls[name] = call
        except Exception as error:  # whatever a peer that does not know this card, size or version raises
            failed[name] = failure(error)
    rounds = LONG_ROUNDS if work.amount >= LONG and not ON_GPU else ROUNDS
    times = _times(calls, {name: work.contenders[name][0] for name in calls}, hosts, rounds)
    ours = next(iter(times.values()), {}).get("ms", float("nan"))
    for name, contender in work.contenders.items():
        row: dict[str, Any] = {"setting": work.name, "contender": name}
        if name in failed:
            yield {**row, FAILED: failed[name]}
            continue
        rate = work.amount / times[name]["ms"] * 1e3
        ceiling = copy_rate() if work.unit == "GB/s" else product_rate(contender[1][0].dtype)
        yield {
            **row,
            **times[name],
            work.unit: rate / 1e9,
            "of the ceiling": rate / ceiling,
            "peak extra MB": memory[name] / 1e6,
            "ours / it": ours / times[name]["ms"],
        }


def _times(
    calls: dict[str, Callable[[], object]],
    forwards: dict[str, Callable[[], Tensor]],
    hosts: dict[str, float],
    rounds: int,
) -> dict[str, dict[str, Any]]:
    """Median and best milliseconds of forward and backward; on a GPU of the forward too, and what the host spends."""
    whole: dict[str, list[float]] = {name: [] for name in calls}
    ahead: dict[str, list[float]] = {name: [] for name in calls}
    waited = dict.fromkeys(calls, False)
    for _ in range(rounds):  # in turn, so that a change of the machine's speed meets all
        for name, call in calls.items():
            timing = time_call(call, hosts[name])
            whole[name].append(timing.seconds)
            waited[name] |= timing.waited
            if ON_GPU:
                ahead[name].append(time_call(forwards[name], hosts[name]).seconds)
    rows: dict[str, dict[str, Any]] = {}
    for name in calls:
        rows[name] = {"ms": statistics.median(whole[name]) * 1e3, "best ms": min(whole[name]) * 1e3}
        if ON_GPU:
            rows[name] |= {"forward ms": statistics.median(ahead[name]) * 1e3, "host µs": hosts[name] * 1e6}
            rows[name] |= {"waited": waited[name]}
    return rows


def both_ways(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A call that makes the gradients of the inputs, for a gradient of ones; the forward alone where there are none."""
    grad = torch.ones_like(forward())

    def call() -> tuple[Tensor, ...]:
        out = forward()
        return torch.autograd.grad(out, inputs, grad) if inputs else ()

    return call


def _peak_extra_bytes(call: Callable[[], tuple[Tensor, ...]]) -> int:
    """The most that the second run's tensors hold at once beside the gradients; the first one loads and compiles."""
    call()
    if ON_GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = call()
        return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in gradients)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        gradients = call()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak - sum(x.nbytes for x in gradients)
