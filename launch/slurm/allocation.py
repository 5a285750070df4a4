"""What SLURM has given a batch job: nodes that are all alike and whole, or an error; never a smaller job."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from deltalm_ds.errors import InputError
from deltalm_ds.training.rendezvous import check_devices, check_even, num_hosts, per_node

RESTARTS = "DELTALM_RESTARTS"  # environment: of the jobs before this one, which submitted it


@dataclass(frozen=True)
class Allocation:
    """The nodes of a job.

    Attributes:
        job: its number.
        hosts: its node list, as SLURM writes it.
        num_nodes: how many.
        tasks_per_node: tasks that srun starts on each of them.
        ranks_per_task: more than one where the only task of a node starts a rank for each of its GPUs.
        restarts: how often the job was started before.
    """

    job: str
    hosts: str
    num_nodes: int
    tasks_per_node: int
    ranks_per_task: int
    restarts: int

    @property
    def ranks_per_node(self) -> int:
        """Of training."""
        return self.tasks_per_node * self.ranks_per_task

    @property
    def num_ranks(self) -> int:
        """On all nodes."""
        return self.num_nodes * self.ranks_per_node


def read_allocation(environment: Mapping[str, str] = os.environ) -> Allocation:
    """The allocation of this batch job, by its environment.

    Raises:
        InputError: this is no batch job, its variables contradict each other, its nodes differ, or there are other
            numbers of tasks and GPUs on them.
    """
    job, hosts, nodes = (environment.get(f"SLURM_JOB_{name}", "") for name in ("ID", "NODELIST", "NUM_NODES"))
    if not job or not nodes.isdecimal():
        raise InputError("This is no job of SLURM's: submit the batch script with sbatch.")
    if "SLURM_HET_SIZE" in environment:
        raise InputError("A heterogeneous job was allocated: all nodes must be of one kind, in one component.")
    if num_hosts(hosts) != int(nodes):
        raise InputError(f"SLURM allocated {nodes} nodes, and its node list names others: {hosts or 'none'}.")
    cpus = per_node(environment.get("SLURM_JOB_CPUS_PER_NODE", ""), "SLURM_JOB_CPUS_PER_NODE")
    check_even(cpus, "processors")
    tasks = per_node(environment.get("SLURM_TASKS_PER_NODE", ""), "SLURM_TASKS_PER_NODE")
    check_even(tasks, "tasks")
    if len(tasks) != int(nodes):
        raise InputError(f"SLURM allocated {nodes} nodes, and tasks on {len(tasks)}: give --ntasks-per-node.")
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    check_devices(tasks[0], 0, gpus)
    num_gpus = int(gpus) if gpus.isdecimal() else 0
    if num_gpus > tasks[0] > 1:
        raise InputError(
            f"{gpus} GPUs a node were allocated to {tasks[0]} tasks: give --ntasks-per-node={gpus}, one for each GPU, "
            "or --ntasks-per-node=1, which starts all ranks of its node."
        )
    of_task = num_gpus if num_gpus and tasks[0] == 1 else 1
    restarts = int(environment.get("SLURM_RESTART_COUNT") or 0) + int(environment.get(RESTARTS) or 0)
    return Allocation(job, hosts, int(nodes), tasks[0], of_task, restarts)
