"""Hosts on one machine, for root: each with a network, a host name, processes, /tmp and an sshd of its own.

    python -m tests.cluster.hosts --count 4 --state DIR [COMMAND ...]

runs a command (or a shell) on the host `login`, from which `n1`, `n2` … are reached by ssh; everything is taken down
behind it. All hosts see this machine's files, as on a cluster with a shared file system, except for /tmp, /run and
/dev/shm. Their network is a bridge: a host's cable can be pulled, and no packet arrives any more, not even one that
says so.
"""

import argparse
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

LOGIN = "login"
LOGIN_ADDRESS = 250  # the last number of its address; that of n3 is 3
PROGRAMS = {"sshd": "openssh-server", "ssh-keygen": "openssh-client", "ip": "iproute2", "nsenter": "util-linux"}
OWN_FOLDERS = ("/tmp", "/run", "/dev/shm", "/proc")  # of each host
READY_S = 10.0
HOME = Path(pwd.getpwuid(os.getuid()).pw_dir)  # that ssh and sshd go by, whatever the variable says
SSH_CONFIG = """\
Host *
  BatchMode yes
  ConnectTimeout 5
  StrictHostKeyChecking yes
"""
# What a host's first process does, which then is its sshd. Arguments: the host's name and the folder of the state. What
# a shell does at its start is left out: a host switched off in the middle of it could leave a lock that all wait for.
INIT = """
hostname "$1"; mount -t proc proc /proc
mount --bind "$2/ssh" ~/.ssh; mount --bind "$2/hosts" /etc/hosts
[ ! -e ~/.bashrc ] || mount --bind /dev/null ~/.bashrc
mount -t tmpfs tmpfs /run; mkdir -p /run/sshd /run/tmp; mount --bind /run/tmp /tmp; chmod 1777 /tmp
mount -t tmpfs tmpfs /dev/shm
exec "$(command -v sshd)" -D -e -f /dev/null -h "$2/hostkey_$1" -o PidFile=none -o UsePAM=no -o StrictModes=no \
  -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=yes -o MaxStartups=100
"""


def what_is_missing() -> str | None:
    """One sentence on why there can be no hosts here; None where there can."""
    if os.geteuid():
        return "Hosts of their own need root: network and process namespaces are made."
    lacking = sorted(package for program, package in PROGRAMS.items() if not shutil.which(program))
    if lacking:
        return f"Hosts of their own need {', '.join(lacking)}: apt-get install {' '.join(lacking)}."
    probe = f"deltalm-probe-{os.getpid()}"
    made = _call("ip", "netns", "add", probe, check=False)
    _call("ip", "netns", "del", probe, check=False)
    return f"This system makes no network namespaces: {made.stderr.strip()}" if made.returncode else None


class Hosts:
    """A login host and `count` hosts behind it, up for as long as the context lasts.

    Args:
        state: a folder for keys and logs, which all hosts see.
        count: how many beside `login`.
        prefix: of the names of interfaces and namespaces; another one for each instance on a machine.
        network: the first three numbers of the addresses; another one for each instance.

    Raises:
        RuntimeError: hosts cannot be made here, or not with that folder; one sentence.
    """

    def __init__(self, state: Path, count: int, prefix: str | None = None, network: str | None = None) -> None:
        self.state = state.absolute()
        self.prefix = prefix or os.environ.get("CLUSTER_PREFIX", "dlm")
        self.network = network or os.environ.get("CLUSTER_NET", "10.77.0")
        self.names = tuple(f"n{number}" for number in range(1, count + 1))
        self._addresses = {name: f"{self.network}.{number}" for number, name in enumerate(self.names, 1)}
        self._addresses[LOGIN] = f"{self.network}.{LOGIN_ADDRESS}"
        self._inits: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Hosts":
        if why := what_is_missing():
            raise RuntimeError(why)
        if any(self.state.is_relative_to(folder) for folder in OWN_FOLDERS):
            raise RuntimeError(f"{self.state}: each host has {', '.join(OWN_FOLDERS)} of its own: give another folder.")
        self.down()  # what a killed one may have left
        try:
            self._write_state()
            _call("ip", "link", "add", self._bridge, "type", "bridge")
            _call("ip", "link", "set", self._bridge, "up")
            for name in self._addresses:
                self._plug_in(name)
                self._start_init(name)
            for name in self._addresses:
                self._await_sshd(name)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    def down(self) -> None:
        """End every process of every host, and remove the network."""
        for namespace in Path("/run/netns").glob(f"{self.prefix}-*"):
            for pid in _call("ip", "netns", "pids", namespace.name, check=False).stdout.split():
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(int(pid)).kill()
            _call("ip", "link", "del", namespace.name, check=False)  # else it goes only some time after its namespace
            _call("ip", "netns", "del", namespace.name, check=False)
        for init in self._inits.values():
            init.wait()
        self._inits.clear()
        _call("ip", "link", "del", self._bridge, check=False)

    def address(self, name: str) -> str:
        """Of a host."""
        return self._addresses[name]

    def start(self, name: str, command: Sequence[str | Path], output: IO[Any] | None = None, **environment: str) -> Any:
        """Start a command on a host, as its own login would: with a bare environment, and this one's folder.

        Args:
            name: the host.
            command: what.
            output: where its output goes; here, if not given.
            environment: added to PATH and HOME.

        Returns:
            The Popen of what waits for the command. A signal to it is not passed on: see `processes`.
        """
        enter = ["nsenter", "--target", str(self._init(name).pid), "--all", f"--wd={Path.cwd()}", "--"]
        values = {"HOME": str(HOME), **{k: os.environ[k] for k in ("PATH", "TERM", "LANG") if k in os.environ}}
        return subprocess.Popen([*enter, *map(str, command)], stdout=output, stderr=output, env=values | environment)

    def run(self, name: str, command: Sequence[str | Path], seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, with its output and its exit code."""
        log = self.state / f"{name}.command"
        with open(log, "wb") as file:
            process = self.start(name, command, file)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill(name)
            raise
        return subprocess.CompletedProcess(list(command), code, log.read_text(errors="replace"), "")

    def processes(self, name: str) -> list[psutil.Process]:
        """What runs on a host, beside sshd; nothing where it is off. Signals reach them from here."""
        found = []
        namespace = _namespace(self._init(name).pid, "pid") if self.is_on(name) else None
        for process in psutil.process_iter(["name"]):
            is_its = namespace is not None and _namespace(process.pid, "pid") == namespace
            if is_its and not process.info["name"].startswith("sshd"):
                found.append(process)
        return found

    def kill(self, name: str) -> None:
        """End all that `processes` has."""
        for process in self.processes(name):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def pull_cable(self, name: str) -> None:
        """From now on no packet gets to the host or from it; nobody is told."""
        _call("ip", "link", "set", self._interface(name), "down")

    def put_cable_back(self, name: str) -> None:
        """Undo `pull_cable`."""
        _call("ip", "link", "set", self._interface(name), "up")

    def is_on(self, name: str) -> bool:
        """Whether a host runs."""
        return name in self._inits and self._inits[name].poll() is None

    def switch_off(self, name: str, silently: bool = True) -> None:
        """Cut a host's power.

        Args:
            name: the host.
            silently: its network dies first, as with a power cut. Else its peers are told that connections are closed,
                as when the system ends all processes.
        """
        if silently:
            self.pull_cable(name)
        self._init(name).kill()
        self._inits[name].wait()

    def boot(self, name: str) -> None:
        """Switch a host on again."""
        self.put_cable_back(name)
        self._start_init(name)
        self._await_sshd(name)

    @property
    def _bridge(self) -> str:
        return f"{self.prefix}-bridge"

    def _interface(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _write_state(self) -> None:
        """Keys of the hosts and of their only user, and who has which address."""
        ssh = self.state / "ssh"
        ssh.mkdir(parents=True, exist_ok=True)
        ssh.chmod(0o700)
        (HOME / ".ssh").mkdir(mode=0o700, exist_ok=True)  # where each host mounts its own
        _make_key(ssh / "id_ed25519")
        shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
        (ssh / "config").write_text(SSH_CONFIG)
        known = []
        for name, address in self._addresses.items():
            _make_key(self.state / f"hostkey_{name}")
            kind, key = (self.state / f"hostkey_{name}.pub").read_text().split()[:2]
            known.append(f"{name},{address} {kind} {key}\n")
        (ssh / "known_hosts").write_text("".join(known))
        names = "".join(f"{address} {name}\n" for name, address in self._addresses.items())
        (self.state / "hosts").write_text(f"127.0.0.1 localhost\n{names}")

    def _plug_in(self, name: str) -> None:
        """The host's network, with one cable to the bridge."""
        namespace = interface = self._interface(name)
        _call("ip", "netns", "add", namespace)
        _call("ip", "link", "add", interface, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _call("ip", "link", "set", interface, "master", self._bridge, "up")
        _call("ip", "-n", namespace, "link", "set", "lo", "up")
        _call("ip", "-n", namespace, "addr", "add", f"{self._addresses[name]}/24", "dev", "eth0")
        _call("ip", "-n", namespace, "link", "set", "eth0", "up")

    def _start_init(self, name: str) -> None:
        """Start the host's first process, with which all others end."""
        enter = [
            "nsenter",
            f"--net=/run/netns/{self._interface(name)}",
            "unshare",
            "--uts",
            "--pid",
            "--mount",
            "--ipc",
        ]
        command = [*enter, "--fork", "--kill-child", "bash", "-c", INIT, "init", name, str(self.state)]
        environment = {"HOME": str(HOME), "PATH": os.environ["PATH"]}
        with open(self.state / f"{name}.log", "ab") as log:
            self._inits[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def _init(self, name: str) -> psutil.Process:
        """The first process of a host, as this machine sees it."""
        children = psutil.Process(self._inits[name].pid).children()
        if not children:
            raise RuntimeError(f"{name} is off: {(self.state / f'{name}.log').read_text()[-500:]}")
        return children[0]

    def _await_sshd(self, name: str) -> None:
        until = time.monotonic() + READY_S
        listens = ["ip", "netns", "exec", self._interface(name), "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/22"]
        while _call(*listens, check=False).returncode:
            if time.monotonic() > until or not self.is_on(name):
                log = (self.state / f"{name}.log").read_text()
                raise RuntimeError(f"{name} did not come up: {log[-500:]}")
            time.sleep(0.02)


def _namespace(pid: int, kind: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:  # it has ended
        return None


def _make_key(path: Path) -> None:
    if not path.exists():
        _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))


def _call(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done


def main(arguments: list[str] | None = None) -> int:
    """Run one command on the login host; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--state", type=Path, required=True, help="a folder outside /tmp, /run and /dev/shm")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    try:
        with Hosts(options.state, options.count) as hosts:
            return hosts.start(LOGIN, options.command or ["bash"]).wait()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
