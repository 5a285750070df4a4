"""A real SLURM on simulated hosts (`hosts.py`): the controller on `login`, a daemon on each host, munge everywhere."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from deltalm_ds.launch.slurm.controller import facts
from tests.cluster.hosts import LOGIN, Hosts

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE")
LONGEST_S = 900.0
PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib")  # where Debian's plugin looks for libpmix.so, of libpmix-dev
CONF = """\
ClusterName=test
SlurmctldHost=login
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={state}/state
SlurmdSpoolDir={state}/spool.%n
SlurmctldPidFile={state}/ctld.pid
SlurmdPidFile={state}/slurmd.%n.pid
SlurmctldLogFile={state}/ctld.log
SlurmdLogFile={state}/slurmd.%n.log
SlurmctldTimeout=10
SlurmdTimeout=10
MinJobAge=3000
KillWait=30
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2,requeue_delay=1
MailProg=/bin/true
GresTypes=gpu
NodeName={nodes} CPUs=32 RealMemory=2000 Gres=gpu:{gpus} State=UNKNOWN
{settings}
"""
PARTITION = "PartitionName=all Nodes={nodes} Default=YES MaxTime=INFINITE State=UP"


def what_is_missing() -> str | None:
    """One sentence on why there can be no SLURM here; None where there can."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    lacking = sorted(package for program, package in PROGRAMS.items() if not shutil.which(program, path=path))
    return f"SLURM needs {', '.join(lacking)}: apt-get install {' '.join(lacking)}." if lacking else None


class Slurm:
    """SLURM on hosts, up for as long as the context lasts.

    Args:
        hosts: that are up.
        state: a folder that all see, for its files; what is in it is removed.
        gpus: how many each node says to have.
        settings: lines of slurm.conf, with the partitions; `{nodes}` is the node list.
    """

    def __init__(self, hosts: Hosts, state: Path, gpus: int = 1, settings: str = PARTITION) -> None:
        self.hosts, self.state = hosts, state.absolute()
        nodes = ",".join(hosts.names)
        shutil.rmtree(self.state, ignore_errors=True)
        (self.state / "state").mkdir(parents=True)
        filled = CONF.format(state=self.state, nodes=nodes, gpus=gpus, settings=settings.format(nodes=nodes))
        (self.state / "slurm.conf").write_text(filled)
        for number in range(gpus):
            (self.state / f"gpu{number}").touch()  # SLURM counts files and looks no further
        (self.state / "gres.conf").write_text(f"NodeName={nodes} Name=gpu File={self.state}/gpu[0-{gpus - 1}]\n")
        (self.state / "munge.key").write_bytes(os.urandom(1024))
        self._environment = {
            "SLURM_CONF": str(self.state / "slurm.conf"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }

    def __enter__(self) -> "Slurm":
        for name in (LOGIN, *self.hosts.names):
            self.start_daemon(name)
        self.await_that(lambda: set(self.node_states().values()) == {"idle"}, 30, "nodes idle")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        for name in (LOGIN, *self.hosts.names):
            if self.hosts.is_on(name):
                self.hosts.kill(name)

    def start_daemon(self, name: str) -> None:
        """Start munge and SLURM's daemon on a host; its own libpmix.so where Debian's plugin finds none."""
        key, conf = self.state / "munge.key", self._environment["SLURM_CONF"]
        script = [
            f"mkdir -p /run/munge; chmod 755 /run/munge; cp {key} /run/munge.key; chmod 600 /run/munge.key",
            "munged --force --key-file=/run/munge.key --log-file=/run/munged.log --pid-file=/run/munged.pid "
            "--seed-file=/run/munge.seed --socket=/run/munge/munge.socket.2",
        ]
        if (PMIX / "libpmix.so.2").exists() and not (PMIX / "libpmix.so").exists():
            copy = self.state / "pmix"
            if not copy.exists():
                shutil.copytree(PMIX, copy, symlinks=True)
                (copy / "libpmix.so").symlink_to("libpmix.so.2")
            script.append(f"mount --bind {copy} {PMIX}")
        script.append(f"slurmctld -c -f {conf}" if name == LOGIN else f"slurmd -f {conf}")
        process = self.hosts.start(name, ["bash", "-c", "; ".join(script)], **self._environment)
        assert process.wait(30) == 0, f"{name}: no daemon, see {self.state}"

    def run(self, *command: str | Path, on: str = LOGIN, **environment: str) -> str:
        """What a command prints on a host.

        Raises:
            AssertionError: it failed.
        """
        log = self.state / "command.log"
        with open(log, "wb") as file:
            code = self.hosts.start(on, command, file, **(self._environment | environment)).wait(LONGEST_S)
        text = log.read_text(errors="replace")
        assert code == 0, f"{' '.join(map(str, command))}: exit code {code}: {text[-3000:]}"
        return text

    def node_states(self) -> dict[str, str]:
        """Of each node."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def submit(self, script: str, *options: str, **environment: str) -> "SlurmJob":
        """Submit one of the batch scripts, as it is.

        Args:
            script: its name.
            options: of sbatch.
            environment: the variables at the script's head.
        """
        path = ROOT / "launch" / "slurm" / f"{script}.sbatch"
        number = self.run("sbatch", "--parsable", f"--chdir={self.state}", *options, path, **environment)
        return SlurmJob(self, number.strip().splitlines()[-1])

    def jobs(self) -> list[str]:
        """The numbers of all jobs that were submitted, oldest first."""
        lines = self.run("scontrol", "show", "job", "--oneliner").splitlines()
        return sorted((facts(line)["JobId"] for line in lines if "JobId=" in line), key=int)

    def await_that(self, condition: Callable[[], object], seconds: float = LONGEST_S, what: str = "") -> None:
        """Wait for a condition.

        Raises:
            AssertionError: it did not hold in time.
        """
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"waited {seconds:.0f} s in vain for: {what}"
            time.sleep(0.3)


class SlurmJob:
    """A job that was submitted."""

    def __init__(self, slurm: Slurm, number: str) -> None:
        self.slurm, self.number = slurm, number

    def facts(self) -> dict[str, str]:
        """What the controller says of it."""
        return facts(self.slurm.run("scontrol", "show", "job", "--oneliner", self.number))

    @property
    def messages(self) -> str:
        """What it has printed, with its successors."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.slurm.state.glob("*.out")))

    def await_state(self, *states: str) -> dict[str, str]:
        """Wait for one of these states; the facts then."""
        found: dict[str, str] = {}

        def is_there() -> bool:
            found.update(self.facts())
            return found["JobState"] in states

        self.slurm.await_that(is_there, what=f"job {self.number} {' or '.join(states)}: {self.messages[-3000:]}")
        return found

    def await_end(self) -> dict[str, str]:
        """Wait until it will not come again; the facts then."""
        return self.await_state(*ENDED)

    def await_step(self, run: Path, step: int) -> None:
        """Wait until a run has made a step.

        Raises:
            AssertionError: the job ended before.
        """

        def is_there() -> bool:
            path = run / "metrics.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            if lines and json.loads(lines[-1])["step"] >= step:
                return True
            assert self.facts()["JobState"] not in ENDED, self.messages[-3000:]
            return False

        self.slurm.await_that(is_there, what=f"step {step} of {run}: {self.messages[-3000:]}")
