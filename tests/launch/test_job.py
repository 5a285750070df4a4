"""What is started travels by file, exactly, whatever shells make of it."""

import json
import os
import subprocess
import sys

import pytest

from deltalm_ds.launch import job as job_module
from deltalm_ds.launch.job import JOB, Job, JobHost, environment_of_ranks, read_job, write_job

ODD = {
    "SPACES": " two  words ",
    "QUOTES": "a 'b' \"c\"",
    "DOLLAR": "$HOME $(date) `date`",
    "BAR": "x=a|b & c > d; e",
    "PERCENT": "%h %n %%",
    "LINES": "one\ntwo\n",
    "EMPTY": "",
    "JSON": '{"a": 1}',
    "NOT_UTF8": os.fsdecode(b"\xff\xfe"),
    "UNICODE": "größer 日本",
}


def make(run, environment=ODD, hosts=(("n1", (0, 2)), ("n2", (0,)))):
    return Job(
        str(run), 3, tuple(JobHost(*host) for host in hosts), ("a.module", "an 'argument' $x"), dict(environment)
    )


def test_a_job_comes_back_as_it_was(tmp_path):
    job = make(tmp_path)
    write_job(job)
    assert read_job(job.directory / JOB) == job
    assert oct(job.directory.stat().st_mode)[-3:] == "700"  # there may be passwords in it


def test_ranks_and_their_hosts(tmp_path):
    job = make(tmp_path, hosts=(("n1", (0, 1, 2)), ("n2", (4,)), ("n3", (0, 1))))
    assert [list(job.ranks_of(index)) for index in range(3)] == [[0, 1, 2], [3], [4, 5]]
    assert [job.host_of(rank) for rank in range(job.num_ranks)] == [0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize("name", ["plain", "two words", "it's", 'a"b', "$HOME", "a|b", "%h", "-n", "größer", "a\nb"])
def test_the_command_line_starts_the_script_in_a_run_of_any_name(name, tmp_path, monkeypatch):
    """Through the shell that sshd gives it to, with a program in Python's place that says what it got."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "print(json.dumps([sys.argv[1:], os.environ['DELTALM_RUN'], os.environ['DELTALM_ATTEMPT']]))\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    job = make(tmp_path / name)
    write_job(job)
    for command, expected in (
        (job.command(1), ["-m", "deltalm_ds.launch.agent", str(job.directory / JOB), "1"]),
        (job.end_command(2.5), ["-m", "deltalm_ds.launch.leftovers", str(tmp_path / name), "2.5"]),
    ):
        done = subprocess.run(["env", "-i", "sh", "-c", command], capture_output=True, check=True, cwd="/")
        assert json.loads(done.stdout) == [expected, str(tmp_path / name), "3"]


def test_the_environment_is_the_users_without_what_is_of_a_login_or_another_job():
    of_user = {"NCCL_DEBUG": "INFO", "PATH": "/opt/bin", "XDG_CACHE_HOME": "/scratch/me", **ODD}
    other = {"HOME": "/root", "SSH_CONNECTION": "1", "CUDA_VISIBLE_DEVICES": "3", "RANK": "7", "MASTER_PORT": "1"}
    other |= {"SLURM_NTASKS": "4", "BASH_FUNC_module%%": "() { x; }", "HOSTNAME": "login", "XDG_RUNTIME_DIR": "/run/1"}
    assert environment_of_ranks({**of_user, **other}) == of_user | job_module.python_environment()


def test_hosts_find_the_code_that_is_running(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/of/user")
    assert job_module.python_environment()["PYTHONPATH"].split(os.pathsep) == [str(job_module.ROOT), "/of/user"]
    monkeypatch.setattr(job_module.sysconfig, "get_path", lambda name: str(job_module.ROOT))
    assert job_module.python_environment()["PYTHONPATH"] == "/of/user"  # it is installed
