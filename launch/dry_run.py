"""`deltalm launch --dry-run N`: what N ranks would be given, made in one process, and whether it holds together.

The commands are those that agents start, read as DeepSpeed's launcher reads them; the batches are those of the recipe's
data, dealt as each rank would deal them. What cannot be known here is left out: the first host's address is its name.
"""

import base64
import hashlib
import json
import resource
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from deltalm_ds.data.micro_batches import deal_micro_batches
from deltalm_ds.data.stream import GlobalBatch
from deltalm_ds.errors import CheckError
from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.ranks import launcher_command
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.plan import make_plan

SLOTS = 8  # of a host that is made up
PORT = 29500  # DeepSpeed's own; a launch takes one that is free
FAULTS_SHOWN = 5


def dry_run(recipe: Recipe, hosts: Sequence[Host] | int) -> dict[str, Any]:
    """Plan a recipe, deal some of its steps, and set up every rank of these hosts, or of N ranks on hosts of eight.

    Returns:
        JSON-ready: `hosts`, `ranks` (the environment of each), `steps` (how each is dealt), `plan` (`deltalm plan`'s),
        `checks` (what was found to hold), `took` (seconds, and the most bytes of this process).

    Raises:
        InputError, DataError: the recipe or something it names does not hold. CheckError: an invariant does not hold.
    """
    start = time.monotonic()
    used = made_up_hosts(hosts) if isinstance(hosts, int) else [host for host in hosts if not host.is_spare]
    ranks = [environment for command in _commands(used) for environment in rank_environments(command)]
    faults = {"ranks and devices": list(faults_of_ranks(ranks, used))}
    plan = make_plan(recipe, len(ranks), trains_here=False)
    stream, steps, deals = open_inputs(recipe).stream, [], []
    for step in (record["step"] for record in plan["steps"]):
        batch = stream.global_batch(step)
        before = time.process_time()  # whatever else runs here
        deal = deal_micro_batches(*_dealt_by(batch, len(ranks), recipe))
        seconds = time.process_time() - before
        deals += [f"step {step}: {fault}" for fault in faults_of_deal(deal, _tokens(batch), recipe)]
        steps.append({"step": step, **_described(deal, batch), "deal_seconds": seconds})
    faults["shares of steps"] = deals
    if any(faults.values()):
        found = [fault for several in faults.values() for fault in several]
        more = f"\n  and {len(found) - FAULTS_SHOWN:,} more" if len(found) > FAULTS_SHOWN else ""
        lines = "\n  ".join(found[:FAULTS_SHOWN])
        raise CheckError(f"A launch on {len(ranks):,} ranks would not hold together:\n  {lines}{more}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "recipe": recipe.name,
        "num_ranks": len(ranks),
        "hosts": [{"name": host.name, "devices": list(host.devices)} for host in used],
        "ranks": ranks,
        "steps": steps,
        "plan": plan,
        "checks": list(faults),
        "took": {"seconds": time.monotonic() - start, "peak_bytes": peak},
    }


def made_up_hosts(num_ranks: int) -> list[Host]:
    """Hosts of eight ranks, the last of what is left."""
    slots = [min(SLOTS, num_ranks - first) for first in range(0, num_ranks, SLOTS)]
    width = len(str(len(slots)))
    return [Host(f"host{number:0{width}d}", ranks) for number, ranks in enumerate(slots, start=1)]


def _commands(hosts: Sequence[Host]) -> list[list[str]]:
    """What the agent of each host would start."""
    world = {str(number): [str(device) for device in host.devices] for number, host in enumerate(hosts)}
    return [launcher_command(world, number, hosts[0].name, PORT, ["program"]) for number in range(len(hosts))]


def rank_environments(command: Sequence[str]) -> list[dict[str, str]]:
    """What DeepSpeed's launcher, started by `command`, adds to the environment of each rank of its host.

    Its local ranks are global ones modulo those of the host, so that on hosts of different sizes they do not begin
    at 0; each is there once all the same. A rank takes the device of that index.
    """
    given = dict(pairwise(command))
    world: dict[str, list[str]] = json.loads(base64.urlsafe_b64decode(given["--world_info"]))
    sizes = [len(devices) for devices in world.values()]
    node = int(given["--node_rank"])
    devices = list(world.values())[node]
    of_host = {
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        "MASTER_ADDR": given["--master_addr"],
        "MASTER_PORT": given["--master_port"],
        "WORLD_SIZE": str(sum(sizes)),
        "LOCAL_SIZE": str(len(devices)),
        "CROSS_RANK": str(node),
        "CROSS_SIZE": str(len(sizes)),
    }
    first = sum(sizes[:node])
    return [
        {"RANK": str(rank), "LOCAL_RANK": str(rank % len(devices)), **of_host}
        for rank in range(first, first + len(devices))
    ]


def faults_of_ranks(ranks: Sequence[dict[str, str]], hosts: Sequence[Host]) -> Iterator[str]:
    """Where the environments of all ranks contradict each other or the hosts."""
    expected = [(number, host, device) for number, host in enumerate(hosts) for device in host.devices]
    if len(ranks) != len(expected):
        yield f"there are {len(ranks):,} ranks for {len(expected):,} slots"
    one = {"WORLD_SIZE": len(expected), "CROSS_SIZE": len(hosts), "MASTER_ADDR": hosts[0].name, "MASTER_PORT": PORT}
    taken: set[tuple[str, str]] = set()
    for rank, (environment, (number, host, _)) in enumerate(zip(ranks, expected, strict=False)):
        wanted = {**one, "RANK": rank, "CROSS_RANK": number, "LOCAL_SIZE": host.slots}
        for name, value in wanted.items():
            if environment.get(name) != str(value):
                yield f"rank {rank} on {host.name} would have {name}={environment.get(name)}, not {value}"
        devices = environment["CUDA_VISIBLE_DEVICES"].split(",")
        local = int(environment["LOCAL_RANK"])
        if devices != [str(device) for device in host.devices] or not 0 <= local < len(devices):
            yield f"rank {rank} on {host.name} would take device {local} of {','.join(devices)}"
        elif (host.name, devices[local]) in taken:
            yield f"rank {rank} on {host.name} would share device {devices[local]} with another"
        else:
            taken.add((host.name, devices[local]))


def faults_of_deal(deal: Sequence[Sequence[np.ndarray]], tokens: np.ndarray, recipe: Recipe) -> Iterator[str]:
    """Where a deal of sequences of so many `tokens` is none that ranks could work on together."""
    sizes = sorted({len(micro_batches) for micro_batches in deal})
    if len(sizes) > 1 or sizes[0] < recipe.batch.min_micro_batches:
        yield f"ranks have {' and '.join(map(str, sizes))} micro-batches"
    dealt = np.concatenate([rows for micro_batches in deal for rows in micro_batches] or [np.zeros(0, np.int64)])
    times = np.bincount(dealt, minlength=len(tokens))
    if len(times) > len(tokens) or (times != 1).any():
        wrong = int((times != 1).argmax())
        yield f"sequence {wrong} of {len(tokens):,} is dealt {times[wrong]} times"
        return
    for rank, micro_batches in enumerate(deal):
        largest = max((int(tokens[rows].sum()) for rows in micro_batches), default=0)
        if largest > recipe.batch.micro_batch_tokens:
            yield f"rank {rank} has a micro-batch of {largest:,} tokens, over {recipe.batch.micro_batch_tokens:,}"


def _dealt_by(batch: GlobalBatch, num_ranks: int, recipe: Recipe) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    """The arguments of `deal_micro_batches`."""
    budget = recipe.batch.micro_batch_tokens, recipe.batch.min_micro_batches
    return batch.source_lengths, batch.target_lengths, num_ranks, *budget


def _tokens(batch: GlobalBatch) -> np.ndarray:
    return batch.source_lengths + batch.target_lengths


def _described(deal: Sequence[Sequence[np.ndarray]], batch: GlobalBatch) -> dict[str, Any]:
    """A deal in numbers; `global_batch` tells global batches apart and is the same for any number of ranks."""
    tokens = _tokens(batch)
    of_rank = [np.concatenate(micro_batches) for micro_batches in deal]
    loads = np.array([int(tokens[rows].sum()) for rows in of_rank])
    dealt = np.sort(np.concatenate(of_rank))
    content = np.stack([batch.component_index, batch.positions, batch.rows, batch.source_lengths, batch.target_lengths])
    return {
        "sequences": len(dealt),
        "tokens": int(loads.sum()),
        "micro_batches_per_rank": len(deal[0]),
        "largest_micro_batch_tokens": max(int(tokens[rows].sum()) for rank in deal for rows in rank),
        "fewest_tokens_of_a_rank": int(loads.min()),
        "most_tokens_of_a_rank": int(loads.max()),
        "idle_ranks": sum(not len(rows) for rows in of_rank),
        "global_batch": hashlib.sha256(content[:, dealt].astype("<i8").tobytes()).hexdigest()[:16],
    }
