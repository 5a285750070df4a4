"""Commands on many hosts at once over the system's ssh, by ClusterShell: the user's ssh configuration, keys and jump
hosts serve, and nothing asks for a password.

A remote command line should carry paths and numbers only: what else travels, travels by file.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ClusterShell.Event import EventHandler
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from ClusterShell.Task import task_self
from ClusterShell.Worker.Ssh import WorkerSsh
from ClusterShell.Worker.Worker import Worker

from deltalm_ds.errors import InputError
from deltalm_ds.launch import host_names

AT_ONCE = 64  # ssh processes at a time
CONNECT_TIMEOUT_S = 10
SSH_FAILED = 255  # ssh's own exit code where it could not run the command
# No terminal, and none of the forwardings that the user has for one.
SSH_OPTIONS = "-T -oClearAllForwardings=yes"


@dataclass
class Outcome:
    """What became of a command on one host."""

    code: int | None = None  # its exit code; None where it was ended after the time-out
    timed_out: bool = False
    lines: list[str] = field(default_factory=list)  # of stdout
    error_lines: list[str] = field(default_factory=list)  # of stderr, ssh's own among them

    @property
    def output(self) -> str:
        """Its stdout, without the last line's end."""
        return "\n".join(self.lines)

    @property
    def errors(self) -> str:
        """Its stderr and ssh's, without the last line's end."""
        return "\n".join(self.error_lines)


def run_on_hosts(
    names: Sequence[str],
    command: str | Callable[[int], str],
    timeout_s: float,
    on_line: Callable[[str, str], None] | None = None,
    on_end: Callable[[str], None] | None = None,
    at_once: int = AT_ONCE,
) -> dict[str, Outcome]:
    """Run a command on every host, many at a time, and wait for all; its stdin is empty.

    An interrupt (Ctrl-C, an exception of what is called) ends the ssh processes, and is raised. A command whose ssh has
    ended may go on remotely: what could take long limits its own time.

    Args:
        names: host names as ssh takes them, different from one another.
        command: for the remote user's shell; or, by the host's place in `names`, each host's own.
        timeout_s: seconds for each host, connecting included.
        on_line: called with the name and each line of stdout as it comes.
        on_end: called with the name when a host's command has ended, however it did.
        at_once: on how many hosts; on all where they wait for each other.

    Raises:
        InputError: there is no ssh here, or a name is none.
    """
    require_ssh()
    for name in names:
        check_name(name)
    outcomes = {name: Outcome() for name in names}
    task = task_self()
    task.set_info("fanout", at_once)
    task.set_info("connect_timeout", CONNECT_TIMEOUT_S)
    task.set_info("ssh_options", SSH_OPTIONS)
    workers = []
    for index, name in enumerate(names):
        line = command if isinstance(command, str) else command(index)
        worker = WorkerSsh(
            NodeSet(name, resolver=RESOLVER_NOGROUP),
            handler=_Collect(outcomes[name], name, on_line, on_end),
            timeout=timeout_s,
            command=line,
            stderr=True,
        )
        worker.set_write_eof()
        task.schedule(worker)
        workers.append(worker)
    try:
        task.resume()
    except BaseException:
        for worker in workers:
            worker.abort()
        raise
    return outcomes


def require_ssh() -> None:
    """Raises:
    InputError: there is no ssh here.
    """
    if shutil.which("ssh") is None:
        raise InputError("There is no ssh on PATH: install OpenSSH's client (Debian: apt-get install openssh-client).")


def check_name(name: str) -> None:
    """Raises:
    InputError: ssh or ClusterShell would take it for something else: an option, several hosts, a group.
    """
    if host_names.expanded(name) != [name]:
        raise InputError(f"{name!r} stands for several hosts: give one name for each.")


def why_ssh_failed(name: str, outcome: Outcome) -> str | None:
    """One sentence with the next step where the host was not reached; None where the command ran."""
    failure = ssh_failure(name, outcome)
    return None if failure is None else "{}: {}.".format(*failure)


def ssh_failure(name: str, outcome: Outcome) -> tuple[str, str] | None:
    """Why the host was not reached, by what ssh said, and the next step; None where the command ran."""
    if outcome.timed_out:
        return f"{name} did not answer in time", f"see whether `ssh {name} true` returns"
    if outcome.code != SSH_FAILED:
        return None
    for pattern, why, next_step in _SSH_SAYS:
        if re.search(pattern, outcome.errors):
            return why.format(name=name), next_step.format(name=name)
    last = next((line for line in reversed(outcome.error_lines) if line.strip()), "no message")
    return f"ssh to {name} failed ({last.strip()})", f"make `ssh {name} true` work first"


# What ssh prints (it knows no language but English), what it means, and what to do.
_SSH_SAYS = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{name} has another host key than ~/.ssh/known_hosts",
        "if it was set up anew, run `ssh-keygen -R {name}` and `ssh {name} true`; else find out who answers there",
    ),
    (
        r"Host key verification failed|key is known for|authenticity of host",
        "the host key of {name} is not known here",
        "run `ssh {name} true` and accept it, or add it with ssh-keyscan",
    ),
    (
        r"Permission denied",
        "{name} does not log you in without a password",
        "put your public key there with `ssh-copy-id {name}`, or start ssh-agent and add the key",
    ),
    (
        r"Could not resolve hostname",
        "the name {name} is unknown here",
        "correct it in the hostfile, or add it to DNS, /etc/hosts or ~/.ssh/config",
    ),
    (
        r"No route to host|Network is unreachable",
        "there is no route to {name}",
        "see whether it is switched on and its network is connected",
    ),
    (
        r"Connection refused",
        "{name} refuses the connection",
        "see whether sshd runs there, and at which port (~/.ssh/config: Port)",
    ),
    (
        r"timed out|Timeout, server",
        "{name} does not answer",
        "see whether it is switched on, and not behind a firewall or a jump host (~/.ssh/config: ProxyJump)",
    ),
    (
        r"kex_exchange_identification|Connection closed by",
        "the connection to {name} was closed while it was being made",
        "see whether sshd there, or on the jump host before it, takes so many at a time (sshd_config: MaxStartups)",
    ),
    (
        r"Too many authentication failures",
        "{name} refused before the right key was tried",
        "name it in ~/.ssh/config (IdentityFile, IdentitiesOnly yes)",
    ),
    (
        r"Cannot execute command-line and remote command",
        "~/.ssh/config has a RemoteCommand for {name}, which keeps every other command out",
        "give this host a second name there without it",
    ),
    (
        r"Bad (?:owner or permissions|configuration option)|terminating, \d+ bad configuration",
        "ssh does not take its configuration for {name}",
        "run `ssh -G {name}` and mend the file that it names",
    ),
)


class _Collect(EventHandler):
    """Gathers what one host's worker says."""

    def __init__(
        self,
        outcome: Outcome,
        name: str,
        on_line: Callable[[str, str], None] | None,
        on_end: Callable[[str], None] | None,
    ) -> None:
        super().__init__()
        self._outcome, self._name, self._on_line, self._on_end = outcome, name, on_line, on_end

    def ev_read(self, worker: Worker, node: str, sname: str, msg: bytes) -> None:
        line = msg.decode(errors="replace")
        if sname == worker.SNAME_STDERR:
            self._outcome.error_lines.append(line)
            return
        self._outcome.lines.append(line)
        if self._on_line is not None:
            self._on_line(self._name, line)

    def ev_hup(self, worker: Worker, node: str, rc: int) -> None:
        self._outcome.code = rc

    def ev_close(self, worker: Worker, timedout: bool) -> None:
        self._outcome.timed_out = timedout
        if self._on_end is not None:
            self._on_end(self._name)
