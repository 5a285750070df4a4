"""The nodes of a job: which they are, whether they can be used, and what each of them is like, asked by srun."""

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from deltalm_ds.launch.remote import Outcome

UNFIT = ("down", "drain", "fail")  # how the states of nodes begin on which nothing can be started, or not for long
TIMED_OUT = 124  # the exit code of coreutils' timeout
GOES_ON, EXIT_CODE = "\x1f", "\x1eexit code "
# srun breaks lines of more than 1,024 bytes without a word: they are broken before, with a mark at each break.
ON_A_NODE = f"""shift "$SLURM_PROCID"; {{ sh -c "$1" 2>&1; echo "{EXIT_CODE}$?"; }} |
    LC_ALL=C sed -u 's/.\\{{500\\}}/&{GOES_ON}\\n/g'"""


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
    on_end: Callable[[str], None] | None = None,
    at_once: int = 0,
) -> dict[str, Outcome]:
    """Run a command on every node of this job by one srun, and wait for all: `launch.remote.run_on_hosts` without ssh.

    Args:
        names: of the nodes, in SLURM's order.
        command: for the shell of each node, by its place in `names`.
        timeout_s: seconds for all.
        on_line: called with the name and each line, stderr's as well, as it comes.
        on_end: called with each name when all have ended.
        at_once: as of `run_on_hosts`; srun knows only all.
    """
    outcomes = {name: Outcome() for name in names}
    one_each = f"--nodes={len(names)}", f"--ntasks={len(names)}", "--ntasks-per-node=1", "--cpus-per-task=1"
    srun = "timeout", f"{timeout_s:.0f}", "srun", *one_each, "--label", "--overlap", "--kill-on-bad-exit=0"
    with subprocess.Popen(
        [*srun, "sh", "-c", ON_A_NODE, "sh", *map(command, range(len(names)))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for name, line in _by_node(process.stdout, names):
            if line.startswith(EXIT_CODE):
                outcomes[name].code = int(line.removeprefix(EXIT_CODE))
                continue
            outcomes[name].lines.append(line)
            outcomes[name].error_lines.append(line)
            if on_line is not None:
                on_line(name, line)
    for name, outcome in outcomes.items():
        outcome.timed_out = outcome.code is None and process.returncode == TIMED_OUT
        if outcome.code is None and not outcome.timed_out:
            outcome.code = process.returncode
        if on_end is not None:
            on_end(name)
    return outcomes


def _by_node(output: Iterable[str], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The lines of each node, by the number of the task that srun puts before each; what srun says is everybody's."""
    begun = dict.fromkeys(names, "")
    for line in output:
        match = re.fullmatch(r" *(\d+): (.*)", line.rstrip("\n"))
        if match is None or int(match[1]) >= len(names):
            yield from ((name, line.rstrip("\n")) for name in names)
            continue
        name = names[int(match[1])]
        begun[name] += match[2].removesuffix(GOES_ON)
        if not match[2].endswith(GOES_ON):
            yield name, begun.pop(name)
            begun[name] = ""
