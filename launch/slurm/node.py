"""The only task of a node, `srun --ntasks-per-node=1 python -m deltalm_ds.launch.slurm.node RUN`: it starts all ranks.

DeepSpeed's launcher starts one for each GPU of the node. A signal to the task has the ranks save and end.
"""

import os
import sys
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.launch.local import Watch, num_gpus, rank_devices, rank_environment
from deltalm_ds.launch.ranks import launcher_command
from deltalm_ds.streams import say
from deltalm_ds.training.rendezvous import EXPECTED_RANKS, check_port, set_interface, slurm_place


def main(arguments: list[str]) -> int:
    """Start the ranks of this node and wait for them; their exit code."""
    (run,) = map(Path, arguments)
    try:
        place = slurm_place(os.environ, num_gpus())  # of this task among those of the other nodes
        if place.rank == 0:
            check_port(place.address, place.port)
        num_ranks = _num_ranks(place.num_ranks)
        environment, devices = rank_environment(num_ranks), rank_devices(num_ranks)
        if place.spans_hosts:
            set_interface(environment, place.address)
    except InputError as error:
        say(str(error))
        return error.exit_code
    world = {str(node): devices for node in range(place.num_ranks)}
    program = ["deltalm_ds.training.train", str(run)]
    return Watch(run, launcher_command(world, place.rank, place.address, place.port, program), environment).wait()


def _num_ranks(num_nodes: int) -> int:
    """Of this node: as planned, else one for each GPU."""
    if planned := os.environ.get(EXPECTED_RANKS):
        return int(planned) // num_nodes
    allocated = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(allocated) if allocated.isdecimal() else max(1, num_gpus())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
