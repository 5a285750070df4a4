"""Where a rank stands, by the variables of SLURM (as a real srun set them), of a launcher, or asked of MPI."""

import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ClusterShell.NodeSet import NodeSet

from deltalm_ds.errors import InputError
from deltalm_ds.training import rendezvous
from deltalm_ds.training.rendezvous import (
    PORTS,
    Place,
    first_host,
    free_port,
    num_hosts,
    per_node,
    slurm_place,
    take_place,
    wanted_port,
)

BIN = Path(sys.executable).parent
# Task 3 of `srun -N2 --ntasks-per-node=2` under SLURM 22.05, without what says nothing of its place.
TASK = {
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}


def test_a_task_of_srun() -> None:
    assert slurm_place(TASK, 0) == Place(3, 1, 4, "n1", PORTS[10], spans_hosts=True)
    assert slurm_place(TASK, 2).device == 1
    assert slurm_place(TASK | {"SLURM_GPUS_ON_NODE": "2"}, 1).device == 0  # each task sees its own GPU
    given = TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert (slurm_place(given, 0).address, slurm_place(given, 0).port) == ("10.0.0.1", 1234)


def test_all_ranks_of_a_step_agree_and_differ() -> None:
    """For every shape of a job: block distribution, which is srun's own."""
    for nodes, tasks in itertools.product((1, 2, 3, 128), (1, 2, 8)):
        shape = {
            "SLURM_STEP_NUM_NODES": str(nodes),
            "SLURM_STEP_NUM_TASKS": str(nodes * tasks),
            "SLURM_STEP_TASKS_PER_NODE": f"{tasks}(x{nodes})" if nodes > 1 else str(tasks),
            "SLURM_STEP_NODELIST": f"gpu[007-{6 + nodes:03}]" if nodes > 1 else "gpu007",
        }
        of_rank = (
            {"SLURM_PROCID": str(n), "SLURM_NODEID": str(n // tasks), "SLURM_LOCALID": str(n % tasks)}
            for n in range(nodes * tasks)
        )
        places = [slurm_place(TASK | shape | own, 0) for own in of_rank]
        assert [place.rank for place in places] == list(range(nodes * tasks))
        assert [place.device for place in places] == list(range(tasks)) * nodes
        assert {(place.num_ranks, place.address, place.port) for place in places} == {
            (nodes * tasks, "gpu007", PORTS[10])
        }
        assert {place.spans_hosts for place in places} == {nodes > 1}


@pytest.mark.parametrize("name", [name for name in TASK if name not in ("SLURM_JOB_NODELIST", "SLURM_TASKS_PER_NODE")])
@pytest.mark.parametrize("value", [None, "", "x", "7"])
def test_a_variable_that_is_missing_or_contradicts_the_others_is_one_sentence(name: str, value: str | None) -> None:
    environment = {key: own for key, own in TASK.items() if key != name} | ({} if value is None else {name: value})
    if (name, value) in {("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "7")}:
        assert slurm_place(environment, 0).num_ranks == 4  # all others tell nothing of these
        return
    if name == "SLURM_STEP_NODELIST" and not value:
        assert slurm_place(environment, 0).address == "n1"  # the job's list serves
        return
    with pytest.raises(InputError) as error:
        slurm_place(environment, 0)
    assert str(error.value).count(". ") == 0 and ("srun" in str(error.value) or "SLURM" in str(error.value))


@pytest.mark.parametrize(
    ("changes", "num_devices", "message"),
    [
        ({"SLURM_JOB_NODELIST": "", "SLURM_STEP_NODELIST": ""}, 0, "2 nodes, and its node list names others: none"),
        ({"SLURM_STEP_NODELIST": "n[1-3]"}, 0, r"names others: n\[1-3\]"),
        ({"SLURM_STEP_NODELIST": "n[1-"}, 0, "names others"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,3"}, 0, r"differ in tasks \(1, 3\)"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, 0, "contradict each other: rank 3 of 4"),
        ({"SLURM_PROCID": "4"}, 0, "contradict each other: rank 4 of 4"),
        ({}, 1, "2 ranks on a node with 1 GPUs"),
        ({"SLURM_GPUS_ON_NODE": "1"}, 0, "2 ranks on a node with 1 GPUs"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(changes: dict[str, str], num_devices: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        slurm_place(TASK | changes, num_devices)


def test_a_rank_that_sees_some_gpus_only_is_refused() -> None:
    four = {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n1"}
    with pytest.raises(InputError, match="sees 2 GPUs: it must see all, or one"):
        slurm_place(TASK | four | {"SLURM_NODEID": "0", "SLURM_LOCALID": "3", "SLURM_GPUS_ON_NODE": "4"}, 2)


@pytest.mark.parametrize(
    ("text", "numbers"), [("8", [8]), ("8(x3)", [8, 8, 8]), ("8(x2),4", [8, 8, 4]), ("1,2,3", [1, 2, 3])]
)
def test_numbers_per_node(text: str, numbers: list[int]) -> None:
    assert per_node(text, "X") == numbers
    for wrong in ("", "8x3", "8(x3", "a", "8,,4", f"{text} "):
        with pytest.raises(InputError, match="X is a number for each node"):
            per_node(wrong, "X")


@pytest.mark.parametrize("hosts", ["n1", "n[1-3]", "n[01-04,07]", "r[1-2]n[4-5]", "a,b[1-2]", "gpu-a100-7,gpu-a100-9"])
def test_the_first_host_of_an_ordered_list_is_that_of_the_library(hosts: str) -> None:
    assert first_host(hosts) == NodeSet(hosts)[0] and num_hosts(hosts) == len(NodeSet(hosts))


def test_the_first_host_is_slurms_not_that_of_the_alphabet() -> None:
    assert [first_host(hosts) for hosts in ("n[3,1]", "n3,n1", "n[3-4],a1", "")] == ["n3", "n3", "n3", ""]


def test_ports_of_jobs_that_follow_each_other_and_of_steps_differ() -> None:
    ports = {rendezvous.slurm_port(job, step) for job in range(123_456, 123_956) for step in range(10)}
    assert len(ports) == 5000 and ports <= set(PORTS)


def test_a_launcher_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside a step of srun, which started the launcher."""
    said = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}
    environment = TASK | said
    take_place(environment)
    assert environment == TASK | said
    for name in said.keys() - {"RANK", "WORLD_SIZE"}:
        with pytest.raises(InputError, match=f"incomplete: {name} not set"):
            take_place({key: value for key, value in said.items() if key != name})
    with pytest.raises(InputError, match=r"6 ranks were planned \(DELTALM_RANKS\), and 8 were started"):
        take_place(said | {"DELTALM_RANKS": "6"})


def test_a_process_that_is_no_rank_is_told_how_to_start_them() -> None:
    with pytest.raises(InputError, match="started by `deltalm train`, by srun or by mpirun"):
        take_place({})
    with pytest.raises(InputError, match="A batch script is no rank: start ranks with srun"):
        take_place({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"})


def test_rank_0_listens_on_its_own_host_at_a_free_port() -> None:
    alone = TASK | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        with pytest.raises(InputError, match=f"Port {port} of 127.0.0.1 is taken by another program"):
            take_place(alone | {"MASTER_PORT": port})
    environment = alone | {"MASTER_PORT": port}
    take_place(environment)
    values = {name: environment[name] for name in rendezvous.LAUNCHERS}
    assert values == {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_SOCKET_IFNAME"]) == ("lo", "lo")
    for address, message in (("192.0.2.1", "which is not 192.0.2.1"), ("no.invalid", "no.invalid, has no address")):
        with pytest.raises(InputError, match=message):
            take_place(alone | {"MASTER_ADDR": address})


def test_a_free_port_is_one_that_nobody_listens_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_port() in PORTS and len({free_port() for _ in range(20)}) > 1
    with socket.socket() as listener:
        taken = free_port()
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        free = free_port()
        monkeypatch.setattr(rendezvous, "PORTS", range(taken, taken + 1))
        with pytest.raises(InputError, match=f"All ports from {taken} to {taken} are taken: export MASTER_PORT"):
            free_port()
        both = range(min(taken, free), max(taken, free) + 1, abs(taken - free))
        monkeypatch.setattr(rendezvous, "PORTS", both)
        assert {free_port() for _ in range(20)} == {free}


RANK = """
import os
from deltalm_ds.errors import InputError
from deltalm_ds.training.rendezvous import LAUNCHERS, take_place
take_place()
print("place", *(os.environ[name] for name in LAUNCHERS), flush=True)
if os.environ["RANK"] == os.environ.get("FAILS"):
    raise RuntimeError("as told")
if "FAILS" in os.environ:
    import time
    time.sleep(600)
"""


def _mpirun(**variables: str) -> subprocess.CompletedProcess[str]:
    mpirun = [BIN / "mpirun", "--allow-run-as-root", "--oversubscribe", "--mca", "btl", "self,sm", "-n", "2"]
    command = [*mpirun, sys.executable, "-m", "mpi4py", "-c", RANK]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "DS_ACCELERATOR": "cpu"} | variables
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)


def test_ranks_of_mpirun_ask_mpi() -> None:
    result = _mpirun()
    assert result.returncode == 0, result.stderr
    lines = sorted(line.split()[1:] for line in result.stdout.splitlines() if line.startswith("place"))
    assert [line[:3] for line in lines] == [["0", "0", "2"], ["1", "1", "2"]]
    assert {tuple(line[3:]) for line in lines} == {(socket.gethostname(), lines[0][4])}


def test_an_exception_in_one_rank_of_mpirun_ends_all() -> None:
    result = _mpirun(FAILS="1")
    assert result.returncode != 0 and "RuntimeError: as told" in result.stderr


@pytest.mark.parametrize(("given", "port"), [(None, 0), ("", 0), ("0", 0), ("29500", 29500)])
def test_the_port_is_the_users_or_any(given: str | None, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    if given is not None:
        monkeypatch.setenv("MASTER_PORT", given)
    assert wanted_port() == port


@pytest.mark.parametrize("given", ["abc", "-1", "65536", "29500 "])
def test_a_port_that_is_none_is_an_error(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", given)
    with pytest.raises(InputError, match=f"MASTER_PORT={given} is no port"):
        wanted_port()
    with pytest.raises(InputError, match=f"MASTER_PORT={given} is no port"):
        slurm_place(TASK | {"MASTER_PORT": given}, 0)
