"""How long ranks exchange weights and gradients, by the model with which NCCL chooses its algorithm.

The topology: hosts of as many GPUs, linked inside by NVLink (or PCIe), between hosts by a network that all GPUs of a
host share and that is nowhere oversubscribed. NCCL's rings go through the GPUs of a host one after the other and cross
its network once, so what is slower of the two decides. Latencies are those of NCCL's own table (`src/graph/tuning.cc`,
protocol Simple), in which a tree's step carries a chunk of 256 KiB; protocols for small messages are left out, so that
small exchanges take less than this.
"""

import math
from dataclasses import dataclass

RING_START_S, RING_LINK_S, RING_NETWORK_S = 8.4e-6, 3.4e-6, 9.6e-6
TREE_LINK_S, TREE_NETWORK_S = 28e-6, 50e-6
TREE_SHARE = (
    0.9 / 2
)  # of the bandwidth that an all-reduce has in a tree, by the same source; a ring sends twice as well
LINK_EFFICIENCY = 0.8  # of a link's bandwidth that a ring reaches, protocol and headers taken off; assumed


@dataclass(frozen=True)
class Topology:
    """`hosts` of `slots` GPUs; bytes a second, one way, between the GPUs of a host and of a host's network."""

    hosts: int
    slots: int
    link_rate: float
    network_rate: float

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.hosts * self.slots

    @property
    def rate(self) -> float:
        """Bytes a second that a ring through all ranks carries."""
        slowest = self.link_rate if self.hosts == 1 else min(self.link_rate, self.network_rate)
        return LINK_EFFICIENCY * (slowest if self.ranks > 1 else math.inf)


def all_reduce_seconds(num_bytes: float, topology: Topology) -> float:
    """The faster of ring and tree."""
    ranks = topology.ranks
    if ranks == 1:
        return 0.0
    ring = 2 * (ranks - 1) / ranks * num_bytes / topology.rate + _ring_latency(topology, 2)
    steps = (topology.slots - 1) * TREE_LINK_S + math.log2(topology.hosts) * TREE_NETWORK_S
    return min(ring, num_bytes / (TREE_SHARE * topology.rate) + 2 * steps)


def gather_seconds(num_bytes: float, topology: Topology) -> float:
    """All-gather, or reduce-scatter, of so many bytes in all: a ring."""
    ranks = topology.ranks
    return 0.0 if ranks == 1 else (ranks - 1) / ranks * num_bytes / topology.rate + _ring_latency(topology, 1)


def _ring_latency(topology: Topology, rounds: int) -> float:
    between = rounds * (topology.hosts - 1)
    inside = rounds * (topology.ranks - 1) - between
    return RING_START_S + inside * RING_LINK_S + between * RING_NETWORK_S
