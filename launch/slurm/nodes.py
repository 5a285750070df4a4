"""The nodes of a job: which they are, whether they can be used, and what each of them is like, asked by srun."""

import re
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from deltalm_ds.launch.remote import Outcome

UNFIT = ("down", "drain", "fail")  # how the states of nodes begin on which nothing can be started, or not for long


def checked(command: Sequence[str], environment: Mapping[str, str] | None = None, text: str | None = None) -> str:
    """What one of SLURM's programs prints, given a text to read.

    Raises:
        OSError: it failed; with what it says.
    """
    result = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"{command[0]} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def node_names(hosts: str) -> list[str]:
    """The nodes of a node list, in SLURM's order, which is that of the ranks."""
    return checked(["scontrol", "show", "hostnames", hosts]).split()


def unfit_nodes(hosts: str) -> list[str]:
    """Nodes of a list that are down, draining or do not answer, each with its state.

    Raises:
        OSError: SLURM's controller does not answer.
    """
    shown = checked(["sinfo", "--noheader", "--Node", "--nodes", hosts, "--format=%N %T"])
    nodes = dict(line.split(maxsplit=1) for line in shown.splitlines() if " " in line)
    return [f"{name} ({state.strip()})" for name, state in nodes.items() if _is_unfit(state.strip())]


def _is_unfit(state: str) -> bool:
    return state.startswith(UNFIT) or state.endswith("*")


def run_on_nodes(
    names: Sequence[str],
    command: Callable[[int], str],
    timeout_s: float,
    on_line: Callable[[str, str], None] | None = None,
) -> dict[str, Outcome]:
    """Run a command on every node of this job by one srun and wait for all; as `launch.remote.run_on_hosts` does by ssh.

    Args:
        names: of the nodes, in SLURM's order.
        command: the command line for the shell of each, by its place in `names`.
        timeout_s: then srun and what it runs are ended.
        on_line: is given name and line as they come, of stdout.
    """
    outcomes = {name: Outcome() for name in names}
    each = f"--nodes={len(names)}", f"--ntasks={len(names)}", "--ntasks-per-node=1", "--cpus-per-task=1", "--label"
    own = 'shift "$SLURM_PROCID"; exec sh -c "$1"', "sh", *map(command, range(len(names)))
    srun = subprocess.Popen(
        ["srun", *each, "--kill-on-bad-exit=0", "--overlap", "sh", "-c", *own],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ended_late = threading.Event()
    timer = threading.Timer(timeout_s, lambda: (ended_late.set(), srun.terminate()))
    timer.start()
    errors = threading.Thread(target=_read, args=(srun.stderr, names, lambda name, line: outcomes[name].error_lines.append(line)))
    errors.start()

    def keep(name: str, line: str) -> None:
        outcomes[name].lines.append(line)
        if on_line is not None:
            on_line(name, line)

    _read(srun.stdout, names, keep)
    errors.join()
    code = srun.wait()
    timer.cancel()
    for outcome in outcomes.values():
        outcome.code, outcome.timed_out = (None, True) if ended_late.is_set() else (code, False)
    return outcomes


def _read(stream: IO[str], names: Sequence[str], take: Callable[[str, str], None]) -> None:
    """Lines that srun has labelled with the number of a task; what it says itself is everybody's."""
    for line in stream:
        match = re.fullmatch(r"\s*(\d+): (.*)\n?", line)
        if match is not None and int(match[1]) < len(names):
            take(names[int(match[1])], match[2])
        else:
            for name in names:
                take(name, line.rstrip("\n"))
