"""What is known of all hosts before a start, for the checks to look at."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.preflight.facts import Code, Facts
from deltalm_ds.launch.preflight.findings import Check

HERE = "this machine"
RECIPE = "the recipe"  # among the files; ranks do not read it, so that it need not be on every host


@dataclass(frozen=True)
class Survey:
    """Attributes:
    hosts: of the job, in order of ranks, spares included.
    facts: what the hosts that answered tell, by name.
    clocks: the least and the most seconds by which each host's clock can be ahead of this machine's.
    code, inputs: of this machine, where the run directory is prepared, as a probe tells them; all are to have the same.
    port: that the user wants on the first host; 0: any.
    checkpoint_bytes: that the run will need for checkpoints, if that was worked out.
    precision: fp32, bf16 or fp16.
    """

    hosts: tuple[Host, ...]
    facts: dict[str, Facts]
    clocks: dict[str, tuple[float, float]]
    code: Code
    inputs: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    checkpoint_bytes: int | None = None
    precision: str = "fp32"

    @cached_property
    def answering(self) -> tuple[str, ...]:
        """The hosts that told what they are like, in order."""
        return tuple(host.name for host in self.hosts if host.name in self.facts)

    @cached_property
    def num_ranks(self) -> int:
        """Without those of spares."""
        return sum(host.slots for host in self.hosts if not host.is_spare)

    def check(self, name: str, fine: str) -> Check:
        """A check of all hosts that answered."""
        return Check(name, self.answering, fine)
