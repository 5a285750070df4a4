"""`python -m deltalm_ds.launch.preflight.collective_check OUT`, on every rank: are sums right, and how fast are they?

Under any launcher that sets RANK, WORLD_SIZE, LOCAL_RANK and the master's address. A collective is as slow as its
slowest member and names nobody. Hosts therefore also exchange data in pairs, each with several others in turn: a host
that is slow with most of them is the slow one.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median, median_high, median_low
from typing import Any

import torch
import torch.distributed as dist

from deltalm_ds.files import write_json

TIMEOUT = timedelta(seconds=60)
MOST_ROUNDS = 8  # that a host is paired in
REPEATS, REPEATS_SMALL = 5, 20
SIZES = {"cuda": (1 << 20, 16 << 20, 256 << 20), "cpu": (1 << 16, 1 << 20, 16 << 20)}  # bytes of an all-reduce
PAIR_BYTES = {"cuda": 64 << 20, "cpu": 8 << 20}  # each way, of each rank

Pair = tuple[int, int]


def main(out: Path) -> None:
    """Entry point; rank 0 writes what was measured."""
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=TIMEOUT)
    try:
        result = measure(device, local_rank)
        if dist.get_rank() == 0:
            write_json(out, result)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def measure(device: torch.device, local_rank: int) -> dict[str, Any]:
    """What was measured: seconds, and bytes a second; the same on every rank.

    Args:
        device: of this rank.
        local_rank: its number on its host; a host's ranks follow each other.
    """
    is_right = _sums_are_right(device)
    first_ranks = _gathered(dist.get_rank() - local_rank)  # of each rank's host
    ranks_of = [[rank for rank, its in enumerate(first_ranks) if its == first] for first in sorted(set(first_ranks))]
    scalar = torch.ones(1, device=device)
    latency_s = max(_gathered(_seconds(lambda: dist.all_reduce(scalar), device, REPEATS_SMALL)))
    all_reduce = [_all_reduce(num_bytes, device) for num_bytes in SIZES[device.type]]
    own = [_exchange(pairs, ranks_of, local_rank, device) for pairs in rounds(len(ranks_of))]
    pairs = _of_pairs(_gathered(own), rounds(len(ranks_of)), ranks_of)
    return {
        "num_ranks": dist.get_world_size(),
        "is_right": is_right,
        "latency_s": latency_s,
        "all_reduce": all_reduce,
        "hosts": [host_values(host, pairs) for host in range(len(ranks_of))],
        "pairs": [{"hosts": pair, **values} for pair, values in sorted(pairs.items())],
    }


def rounds(num_hosts: int) -> list[list[Pair]]:
    """Who exchanges with whom, round by round: no host twice in one, none with the same host again."""
    ring = [*range(num_hosts), *([-1] if num_hosts % 2 else [])]  # -1: whoever is paired with it waits
    found = []
    for _ in range(min(len(ring) - 1, MOST_ROUNDS)):
        halves = zip(ring[: len(ring) // 2], reversed(ring), strict=False)
        found.append([(min(pair), max(pair)) for pair in halves if -1 not in pair])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return found


def host_values(host: int, pairs: dict[Pair, dict[str, float]]) -> dict[str, float]:
    """What a host does with most of its partners: a slow one among these does not count."""
    own = [values for pair, values in pairs.items() if host in pair]
    return {
        "bandwidth": median_high(values["bandwidth"] for values in own) if own else 0.0,
        "latency_s": median_low(values["latency_s"] for values in own) if own else 0.0,
    }


def _sums_are_right(device: torch.device) -> bool:
    """Whether every number of a sum over all ranks is what it must be, on every rank."""
    numbers = torch.arange(1 << 18, device=device, dtype=torch.float32).remainder_(1 << 10)
    total = numbers * (dist.get_rank() + 1)
    dist.all_reduce(total)
    size = dist.get_world_size()
    expected = numbers * (size * (size + 1) // 2)  # exact below 2**24: up to 180 ranks
    is_right = bool(torch.allclose(total, expected, rtol=1e-6, atol=0.0))
    return all(_gathered(is_right))


def _all_reduce(num_bytes: int, device: torch.device) -> dict[str, float]:
    """Seconds of the slowest rank, and the bytes a second that a ring would send from each rank meanwhile."""
    numbers = torch.zeros(num_bytes // 4, device=device)
    seconds = max(_gathered(_seconds(lambda: dist.all_reduce(numbers), device, REPEATS)))
    size = dist.get_world_size()
    return {"bytes": num_bytes, "seconds": seconds, "bandwidth": 2 * (size - 1) / size * num_bytes / seconds}


def _exchange(
    pairs: Sequence[Pair], ranks_of: Sequence[Sequence[int]], local_rank: int, device: torch.device
) -> dict[str, float] | None:
    """Send to and receive from the rank of this number on the paired host; None where there is none."""
    dist.barrier()
    host = next(number for number, ranks in enumerate(ranks_of) if dist.get_rank() in ranks)
    other = next((one if two == host else two for one, two in pairs if host in (one, two)), None)
    if other is None or local_rank >= len(ranks_of[other]):
        return None
    partner = ranks_of[other][local_rank]
    sizes = {"small": (4, REPEATS_SMALL), "large": (PAIR_BYTES[device.type], REPEATS)}
    seconds = {}
    for name, (num_bytes, repeats) in sizes.items():
        sent, received = (torch.zeros(num_bytes // 4, device=device) for _ in range(2))

        def swap(sent: torch.Tensor = sent, received: torch.Tensor = received) -> None:
            both = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
            for work in dist.batch_isend_irecv(both):
                work.wait()

        seconds[name] = _seconds(swap, device, repeats)
    return {"bandwidth": PAIR_BYTES[device.type] / seconds["large"], "latency_s": seconds["small"]}


def _of_pairs(
    told: Sequence[Sequence[dict[str, float] | None]],
    by_round: Sequence[Sequence[Pair]],
    ranks_of: Sequence[Sequence[int]],
) -> dict[Pair, dict[str, float]]:
    """Of each pair of hosts the bandwidth of all its ranks together, one way, and the latency of most."""
    found = {}
    for number, pairs in enumerate(by_round):
        for pair in pairs:
            sides = [[values for rank in ranks_of[host] if (values := told[rank][number])] for host in pair]
            rate = min(sum(values["bandwidth"] for values in side) for side in sides)
            late = median(values["latency_s"] for side in sides for values in side)
            found[pair] = {"bandwidth": rate, "latency_s": late}
    return found


def _seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median of so many repeats, after one that does not count."""
    taken = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begin)
    return median(taken[1:])


def _gathered(value: Any) -> list[Any]:
    """The value of every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


if __name__ == "__main__":
    main(Path(sys.argv[1]))
