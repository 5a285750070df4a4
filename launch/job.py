"""What an attempt starts, exactly, as a file that its hosts read: RUN/launch/attempt_0001/job.json, with agent.sh.

Command lines do not survive remote shells and launchers; a file does [facts: launching].
"""

import os
import shlex
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import deltalm_ds
from deltalm_ds.files import atomic_file, read_json, write_json
from deltalm_ds.runs.attempts import ATTEMPT, attempt_name

RUN = "DELTALM_RUN"  # environment: the run directory, by which the processes of a run are known
JOB, SCRIPT = "job.json", "agent.sh"
ROOT = Path(deltalm_ds.__file__).resolve().parent.parent
# What belongs to a login on one host and means nothing, or something else, on another.
OF_A_HOST = ("HOME", "USER", "LOGNAME", "SHELL", "MAIL", "TMPDIR", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_", "DISPLAY")
_OF_A_LOGIN = ("SSH_", "XDG_RUNTIME_DIR", "XDG_SESSION_", "DBUS_", "TMUX", "BASH_FUNC_", "SLURM_", "OMPI_", "PMIX_")
# What the launcher sets, by the hostfile.
_OF_A_RANK = ("CUDA_VISIBLE_DEVICES", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE")


@dataclass(frozen=True)
class JobHost:
    """A host and its ranks.

    Attributes:
        name: as ssh takes it.
        devices: the number of each rank's GPU; where there are none, a rank runs on the processor.
    """

    name: str
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """What an attempt starts.

    Attributes:
        run: the run directory, absolute.
        attempt: its number.
        hosts: in order of ranks.
        program: a module and its arguments, which every rank runs.
        environment: of the ranks, but for what is of their host.
        port: on the first host, where all ranks meet; 0: any that is free.
    """

    run: str
    attempt: int
    hosts: tuple[JobHost, ...]
    program: tuple[str, ...]
    environment: dict[str, str]
    port: int = 0

    @property
    def num_ranks(self) -> int:
        """On all hosts."""
        return sum(len(host.devices) for host in self.hosts)

    def ranks_of(self, index: int) -> range:
        """The ranks of a host."""
        first = sum(len(host.devices) for host in self.hosts[:index])
        return range(first, first + len(self.hosts[index].devices))

    def host_of(self, rank: int) -> int:
        """The host of a rank."""
        return next(index for index in range(len(self.hosts)) if rank in self.ranks_of(index))

    @property
    def directory(self) -> Path:
        """Where it stands."""
        return Path(self.run) / "launch" / attempt_name(self.attempt)

    @property
    def logs(self) -> Path:
        """Of the ranks."""
        return Path(self.run) / "logs" / attempt_name(self.attempt)

    def command(self, index: int) -> str:
        """The command line for the shell of a host that starts its agent: a path and a number."""
        return f"exec sh {shlex.quote(str(self.directory / SCRIPT))} {index}"

    def end_command(self, grace_s: float) -> str:
        """The command line that ends what is left of the run on a host."""
        return f"exec sh {shlex.quote(str(self.directory / SCRIPT))} end {grace_s}"


def environment_of_ranks(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What goes with a job to its hosts: what the user has set here, and nothing of this login or another job."""
    left_out = {*OF_A_HOST, *_OF_A_RANK}
    kept = {name: value for name, value in environment.items() if name not in left_out}
    return {name: value for name, value in kept.items() if not name.startswith(_OF_A_LOGIN)} | python_environment()


def write_job(job: Job) -> None:
    """Write job.json and agent.sh. The environment may hold passwords: nobody else may read it."""
    job.directory.mkdir(parents=True, exist_ok=True)
    job.directory.chmod(0o700)
    job.logs.mkdir(parents=True, exist_ok=True)
    write_json(job.directory / JOB, asdict(job))
    with atomic_file(job.directory / SCRIPT) as file:
        file.write(_script(job))


def read_job(path: Path) -> Job:
    """The job of a job.json."""
    content = read_json(path)
    hosts = tuple(JobHost(host["name"], tuple(host["devices"])) for host in content["hosts"])
    return Job(**content | {"hosts": hosts, "program": tuple(content["program"])})


def _script(job: Job) -> str:
    """Starts the agent with this Python and this code, wherever the host's own would lead."""
    quoted = {name: shlex.quote(value) for name, value in python_environment().items()}
    own = {**quoted, RUN: shlex.quote(job.run), ATTEMPT: str(job.attempt)}
    exports = "".join(f"export {name}={value}\n" for name, value in own.items())
    python, run, path = (shlex.quote(str(one)) for one in (sys.executable, job.run, job.directory / JOB))
    end = f'[ "$1" = end ] && exec {python} -m deltalm_ds.launch.leftovers {run} "$2"\n'
    home = f"cd {shlex.quote(str(job.directory))} || exit 1\n"  # no module of a home directory is in the way
    return f'#!/bin/sh\n{home}{exports}{end}exec {python} -m deltalm_ds.launch.agent {path} "$1"\n'


def python_environment() -> dict[str, str]:
    """By which another Python of the same installation finds the same code, whatever the working directory holds."""
    site_packages = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    given = os.environ.get("PYTHONPATH", "")
    paths = [*([] if ROOT in site_packages else [str(ROOT)]), *([given] if given else [])]
    return {"PYTHONSAFEPATH": "1", **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})}
