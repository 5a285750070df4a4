"""What benchmarks run on, and how they measure there: time of the device and of the host, memory, and the ceilings.

On a GPU a call is timed by events that stand behind a spinning kernel: the host has issued the whole call before the
device begins with it, so that what the events enclose is the device alone. The L2 cache is flushed in front of every
call. On a CPU it is the wall clock.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from deltalm_ds.devices import device_of_card
from deltalm_ds.kernels.precision import sum_products_in_float32

TOY_VARIABLE = "DELTALM_BENCHMARKS_TOY"  # set: sizes that show in seconds on a CPU whether everything runs
TOY = bool(os.environ.get(TOY_VARIABLE))
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not TOY else "cpu")
ON_GPU = DEVICE.type == "cuda"
sum_products_in_float32()  # as training and generation do

SPIN_HZ = 2e9  # cycles a second that no GPU exceeds, so that a spin lasts as long as asked for, or longer
LONGEST_SPIN_S = 0.05
FLUSH_BYTES = 256 << 20  # more than any L2 cache holds
CALLS_OF_HOST = 10  # whose launches the queue of a device holds


class Timing(NamedTuple):
    """Seconds of one call; whether the device had to wait for the host meanwhile, so that they are not its own."""

    seconds: float
    waited: bool


def wait() -> None:
    """Until the device has done all that it was asked for."""
    if ON_GPU:
        torch.cuda.synchronize()


def time_call(call: Callable[[], object], host_seconds: float = 0.0) -> Timing:
    """One call, which was made before and is not the first. host_seconds: what its launches take, on a GPU."""
    if not ON_GPU:
        start = time.perf_counter()
        call()
        return Timing(time.perf_counter() - start, False)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(min(2 * host_seconds + 1e-4, LONGEST_SPIN_S) * SPIN_HZ))
    _flush_buffer().zero_()
    begin.record()
    call()
    has_begun = begin.query()
    end.record()
    end.synchronize()
    return Timing(begin.elapsed_time(end) / 1e3, has_begun)


@functools.cache
def _flush_buffer() -> Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device=DEVICE)


def host_seconds(call: Callable[[], object]) -> float:
    """What the host needs to issue a call, where it does not wait for the device; on a CPU, the call itself."""
    call()
    wait()
    start = time.perf_counter()
    for _ in range(CALLS_OF_HOST):
        call()
    took = time.perf_counter() - start
    wait()
    return took / CALLS_OF_HOST


def best_seconds(call: Callable[[], object], at_least: float = 0.15) -> float:
    """The least of several runs that take `at_least` seconds together, after one to warm up."""
    call()
    wait()
    best, spent = float("inf"), 0.0
    while spent < at_least:
        took = time_call(call).seconds
        best, spent = min(best, took), spent + max(took, 1e-4)
    return best


@functools.cache
def copy_rate() -> float:
    """Bytes read and written a second by a copy far larger than the caches."""
    elements = 1 << 12 if TOY else 1 << 29 if ON_GPU else 1 << 26
    source = torch.ones(elements, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source))


@functools.cache
def product_rate(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 64 if TOY else 8192 if ON_GPU else 2048
    a, b, out = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(3))
    return 2 * size**3 / best_seconds(lambda: torch.mm(a, b, out=out))


def peak_rate() -> float | None:
    """Operations a second of the card's 16-bit products by its data sheet; None where it is not known, or a CPU."""
    known = device_of_card(torch.cuda.get_device_name()) if ON_GPU else None
    return None if known is None else known.operations["float16"]


def failure(error: Exception) -> str:
    """One line on why a row could not be measured; afterwards the device's memory is free for the next one."""
    if ON_GPU:
        torch.cuda.empty_cache()
    return f"{type(error).__name__}: {error}".strip().split("\n")[0][:200]
