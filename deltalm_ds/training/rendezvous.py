"""Where a rank stands among the others, as told by what started it: DeepSpeed's launcher, SLURM's srun, or mpirun.

A launcher says it outright. srun's variables say it, each checked against the others, as a rank that believes a wrong
one waits for partners that do not exist. Under mpirun the ranks ask MPI. DeepSpeed's own discovery knows no srun.
"""

import os
import random
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import psutil
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from deltalm_ds.errors import InputError

LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # where DeepSpeed and torch look
EXPECTED_RANKS = "DELTALM_RANKS"  # environment: how many ranks a job was planned for
PORTS = range(20000, 30000)  # below those that systems give out by themselves
LAST_PORT = 65_535
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Place:
    """A rank among the ranks.

    Attributes:
        rank: from 0.
        device: the number of its GPU among those it sees.
        num_ranks: of all hosts.
        address, port: where rank 0 listens.
        spans_hosts: whether there are ranks on other hosts.
    """

    rank: int
    device: int
    num_ranks: int
    address: str
    port: int
    spans_hosts: bool


def take_place(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what DeepSpeed and torch read, for a rank that srun or mpirun started; a launcher has set it.

    Raises:
        InputError: variables are missing or contradict each other, there are fewer GPUs than ranks or other ranks than
            were planned, or rank 0 cannot listen.
    """
    if not environment.keys() & {"RANK", "WORLD_SIZE"}:
        place = _place(environment, _num_devices(environment))
        if place.rank == 0:
            check_port(place.address, place.port)
        values = place.rank, place.device, place.num_ranks, place.address, place.port
        environment.update(zip(LAUNCHERS, map(str, values), strict=True))
        if place.spans_hosts:
            set_interface(environment, place.address)
    elif missing := [name for name in LAUNCHERS if not environment.get(name)]:
        raise InputError(f"A launcher's variables are incomplete: {', '.join(missing)} not set beside the others.")
    _check_expected(environment)


def _num_devices(environment: Mapping[str, str]) -> int:
    """GPUs that this process sees; none where DeepSpeed is told to take the processor."""
    if environment.get("DS_ACCELERATOR") == "cpu":
        return 0
    import torch  # not by whoever only reads SLURM's variables

    return torch.cuda.device_count()


def _place(environment: Mapping[str, str], num_devices: int) -> Place:
    if any(name in environment for name in _MPI_SIZES):
        return mpi_place(environment, num_devices)
    if "SLURM_STEP_NUM_TASKS" in environment:
        return slurm_place(environment, num_devices)
    if "SLURM_JOB_ID" in environment:
        raise InputError(
            "A batch script is no rank: start ranks with srun, or training on this host with `deltalm train`."
        )
    raise InputError("Nothing says which rank this is: ranks are started by `deltalm train`, by srun or by mpirun.")


def _check_expected(environment: Mapping[str, str]) -> None:
    planned, started = environment.get(EXPECTED_RANKS), environment["WORLD_SIZE"]
    if planned and planned != started:
        raise InputError(f"{planned} ranks were planned ({EXPECTED_RANKS}), and {started} were started.")


# --- srun ---


def slurm_place(environment: Mapping[str, str], num_devices: int) -> Place:
    """The place of a task of srun, by SLURM's variables.

    Args:
        environment: of the task.
        num_devices: GPUs that it sees.

    Raises:
        InputError: variables are missing or contradict each other, or a node has more tasks than GPUs.
    """
    rank, local, node, num_ranks, num_nodes, job, step = (
        _number(environment, f"SLURM_{name}")
        for name in ("PROCID", "LOCALID", "NODEID", "STEP_NUM_TASKS", "STEP_NUM_NODES", "JOB_ID", "STEP_ID")
    )
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    tasks = per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""), "SLURM_STEP_TASKS_PER_NODE")
    if num_hosts(hosts) != num_nodes:
        raise InputError(f"SLURM started {num_nodes} nodes, and its node list names others: {hosts or 'none'}.")
    fits = len(tasks) == num_nodes and sum(tasks) == num_ranks and rank < num_ranks and node < num_nodes
    if not fits or local >= tasks[node]:
        raise InputError(
            f"SLURM's variables contradict each other: rank {rank} of {num_ranks}, number {local} on node {node} of "
            f"{num_nodes}, tasks per node {tasks}."
        )
    check_even(tasks, "tasks")
    check_devices(tasks[node], num_devices, environment.get("SLURM_GPUS_ON_NODE"))
    address = environment.get("MASTER_ADDR") or first_host(hosts)
    port = wanted_port(environment) or slurm_port(job, step)
    return Place(rank, 0 if num_devices == 1 else local, num_ranks, address, port, num_nodes > 1)


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise InputError(f"srun sets {name} to a number, and here it is {value or 'missing'}: start ranks with srun.")
    return int(value)


def per_node(text: str, name: str) -> list[int]:
    """SLURM's short form of a number for each node, as in `8(x3),4`.

    Raises:
        InputError: it is something else.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise InputError(f"{name} is a number for each node, as in 8(x3), and here it is {text or 'missing'}.")
        numbers += [int(match[1])] * int(match[2] or 1)
    return numbers


def check_even(numbers: list[int], what: str) -> None:
    """InputError if the nodes differ in a number.

    Args:
        numbers: of each node.
        what: is counted.
    """
    if len(set(numbers)) > 1:
        raise InputError(f"The nodes differ in {what} ({', '.join(map(str, numbers))}): all must have as many.")


def num_hosts(hosts: str) -> int:
    """How many a node list names; 0 where it is none."""
    try:
        return len(NodeSet(hosts, resolver=RESOLVER_NOGROUP))
    except NodeSetException:
        return 0


def first_host(hosts: str) -> str:
    """Of a node list, in SLURM's order, which is that of the ranks: `n[3,1]` begins with n3."""
    first = re.match(r"(?:\[[^]]*\]|[^,\[])*", hosts)
    assert first is not None  # it may be empty
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", first[0])


def slurm_port(job: int, step: int) -> int:
    """Jobs that follow one another, and steps of a job, get different ports."""
    return PORTS[(10 * job + step) % len(PORTS)]


def check_devices(num_tasks: int, num_devices: int, num_allocated: str | None = None) -> None:
    """InputError if the ranks of a node have not a GPU each.

    Args:
        num_tasks: ranks of this node.
        num_devices: GPUs that a rank sees: all of the node's, or its own alone.
        num_allocated: how many the scheduler says there are on the node, if it does.
    """
    num_gpus = int(num_allocated) if num_allocated and num_allocated.isdecimal() else num_devices
    if num_gpus and num_tasks > num_gpus:
        raise InputError(f"{num_tasks} ranks on a node with {num_gpus} GPUs: take one task per GPU.")
    if 1 < num_devices < num_tasks:
        raise InputError(f"A rank of {num_tasks} on its node sees {num_devices} GPUs: it must see all, or one.")


# --- mpirun ---


def mpi_place(environment: Mapping[str, str], num_devices: int) -> Place:
    """The place of a rank of mpirun. A collective.

    Args:
        environment: of the rank.
        num_devices: GPUs that it sees.

    Raises:
        InputError: MPI cannot be used or knows of other ranks, or a host has more ranks than GPUs.
    """
    started = int(next(environment[name] for name in _MPI_SIZES if name in environment))
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(f"mpirun started {started} ranks, and mpi4py cannot be used ({error}).") from None
    world = MPI.COMM_WORLD
    if world.size != started:
        raise InputError(f"mpirun started {started} ranks, and MPI knows of {world.size}: mpi4py uses another library.")
    here = world.Split_type(MPI.COMM_TYPE_SHARED)
    local, tasks = here.rank, world.allgather(here.size)
    if len(set(tasks)) > 1:
        raise InputError(f"Hosts have different numbers of ranks ({', '.join(map(str, sorted(set(tasks))))}).")
    check_devices(here.size, num_devices)
    address, port = world.bcast((_own_address(environment), wanted_port(environment) or free_port()))
    return Place(world.rank, 0 if num_devices == 1 else local, world.size, address, port, here.size < world.size)


def _own_address(environment: Mapping[str, str]) -> str:
    return environment.get("MASTER_ADDR") or socket.gethostname()


# --- the network ---


def wanted_port(environment: Mapping[str, str] = os.environ) -> int:
    """The port on the first host that the user wants (MASTER_PORT); 0: any that is free.

    Raises:
        InputError: it is none.
    """
    text = environment.get("MASTER_PORT") or "0"
    if not text.isdecimal() or int(text) > LAST_PORT:
        raise InputError(f"MASTER_PORT={text} is no port: give a number up to {LAST_PORT}, or leave it unset.")
    return int(text)


def free_port() -> int:
    """One of `PORTS` at which nothing listens here.

    Ranks take seconds to listen there, and a port that the system has given out is given to others meanwhile.

    Raises:
        InputError: there is none.
    """
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if _is_free(port):
            return port
    raise InputError(f"All ports from {PORTS.start} to {PORTS.stop - 1} are taken: export MASTER_PORT.")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def check_port(address: str, port: int) -> None:
    """InputError if this host, on which rank 0 is, is not at that address, or something listens at the port."""
    try:
        own = _is_own(socket.gethostbyname(address))
    except OSError as error:
        raise InputError(f"The first host, {address}, has no address ({error.strerror}): export MASTER_ADDR.") from None
    if not own:
        raise InputError(f"Rank 0 runs on {socket.gethostname()}, which is not {address}: export MASTER_ADDR.")
    if not _is_free(port):
        raise InputError(f"Port {port} of {address} is taken by another program: export MASTER_PORT.")


def _is_own(address: str) -> bool:
    return address.startswith("127.") or _interface(address) is not None


def _interface(address: str) -> str | None:
    """The network interface of this host that has an address."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, found in interfaces if any(one.address == address for one in found)), None)


def set_interface(environment: MutableMapping[str, str], address: str) -> None:
    """Have gloo and NCCL talk over the interface that leads to an address; what the user has set stays.

    gloo otherwise takes the address that this host's name has, which is a loop to itself on many systems.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect((address, 9))  # sends nothing
        except OSError as error:
            raise InputError(f"{address}, where rank 0 is, cannot be reached ({error.strerror}).") from None
        own = sender.getsockname()[0]
    if name := _interface(own):
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            environment.setdefault(variable, name)
