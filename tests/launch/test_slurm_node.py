"""The one task of a node: which ranks its launcher is told to start."""

import base64
import json
from pathlib import Path

import pytest

from deltalm_ds.launch.slurm import node

TASK = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_GPUS_ON_NODE": "3",
    "MASTER_ADDR": "127.0.0.1",
    "DS_ACCELERATOR": "cpu",
}


@pytest.mark.parametrize(("planned", "num_ranks"), [("4", 2), (None, 3)])
def test_its_launcher_starts_the_ranks_of_this_node(monkeypatch, planned, num_ranks):
    started = []

    class Watch:
        def __init__(self, run, command, environment):
            started.append((run, command, environment))

        def wait(self):
            return 75

    monkeypatch.setattr(node, "Watch", Watch)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    if planned:
        monkeypatch.setenv(node.EXPECTED_RANKS, planned)
    assert node.main(["/runs/my"]) == 75
    ((run, command, environment),) = started
    assert run == Path("/runs/my") and command[-1] == "/runs/my"
    world = json.loads(base64.urlsafe_b64decode(command[command.index("--world_info") + 1]))
    assert [len(devices) for devices in world.values()] == [num_ranks, num_ranks]
    assert command[command.index("--node_rank") + 1] == "1"
    assert 20_000 <= int(command[command.index("--master_port") + 1]) < 30_000
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_task_that_srun_did_not_start_is_told(monkeypatch, capsys):
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NODEID")
    assert node.main(["/runs/my"]) == 2
    assert "srun sets SLURM_NODEID" in capsys.readouterr().err
