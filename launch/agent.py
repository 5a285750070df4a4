"""`python -m deltalm_ds.launch.agent JOB INDEX`: an attempt's part on one host, for as long as the supervisor is heard.

Its stdin and stdout are the connection to the supervisor, a JSON object a line. It says hello, finds out whether it
reaches the first host, starts DeepSpeed's launcher when told, and from then on tells once a second what its ranks are
at, and at once which of them has ended. Without a line for LOST_S its ranks get the time to save, and it ends.
Imports no torch: it starts in a moment.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltalm_ds.launch.job import OF_A_HOST, RUN, Job, read_job
from deltalm_ds.launch.leftovers import end_leftovers
from deltalm_ds.launch.meeting import Listener, own_addresses, reached
from deltalm_ds.launch.rank import launcher_log
from deltalm_ds.launch.rank_processes import RankProcesses
from deltalm_ds.launch.ranks import GRACE_S, NO_DEVICE, Launcher, complete_environment, launcher_command
from deltalm_ds.runs.attempts import ATTEMPT
from deltalm_ds.runs.beats import read_beats
from deltalm_ds.runs.starter import stop_signals

LOST_S = 12.0  # without a line from the supervisor
BEAT_S = 1.0
LOOK_S = 0.2


class Agent:
    """One host's part of an attempt."""

    def __init__(self, job: Job, index: int) -> None:
        self._job, self._index = job, index
        self._listener: Listener | None = None
        self._launcher: Launcher | None = None
        self._processes: RankProcesses | None = None
        self._end_by: float | None = None  # of the clock: when whatever is left is killed
        self._why = ""
        self._heard, self._beats, self._beaten = time.monotonic(), 0, 0.0
        self._launcher_told = False
        self._unread = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        os.set_blocking(sys.stdin.fileno(), False)
        for number in stop_signals():
            signal.signal(
                number, lambda number, _frame: self._stop(GRACE_S, f"{signal.Signals(number).name} on its host")
            )

    def run(self) -> None:
        """Until nothing of the attempt is left on this host."""
        self._hello()
        while not self._is_over():
            for message in self._read(LOOK_S):
                self._obey(message)
            if self._heard_nothing():
                self._stop(GRACE_S, "the supervisor is not heard any more")
            self._look()
        code = self._launcher.end() if self._launcher else None
        self._tell_of_ranks()
        self._say({"ended": code, "why": self._why})

    def _hello(self) -> None:
        ended = end_leftovers(Path(self._job.run), before=self._job.attempt)
        addresses = own_addresses()
        hello: dict[str, Any] = {"leftovers": ended, "interfaces": addresses}
        if self._index == 0:
            try:
                self._listener = Listener(self._job.port)
            except OSError as error:
                self._stop(0.0, f"port {self._job.port} is in use there ({error.strerror}): set MASTER_PORT to another")
                return
            named_first = _named_first(self._job.hosts[0].name, addresses)
            hello |= {"addresses": named_first, "port": self._listener.port, "word": self._listener.word}
        self._say({"hello": hello})

    def _obey(self, message: dict[str, Any]) -> None:
        if "meet" in message:
            own = {address: address for address in own_addresses()}
            self._say({"met": own if self._index == 0 else reached(**message["meet"])})
        if "start" in message and self._launcher is None and self._end_by is None:
            self._start(**message["start"])
        if "stop" in message:
            self._stop(message["stop"], "")

    def _start(self, address: str, port: int, own: str) -> None:
        """Start the ranks.

        Args:
            address: of the first host, as all reach it.
            port: there.
            own: this host's address in that network.
        """
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        job, host = self._job, self._job.hosts[self._index]
        on_gpu = job.environment.get("DS_ACCELERATOR") != "cpu" and has_gpus()
        devices = [str(device) for device in host.devices] if on_gpu else [NO_DEVICE] * len(host.devices)
        environment = {name: os.environ[name] for name in OF_A_HOST if name in os.environ} | job.environment
        environment |= {RUN: job.run, ATTEMPT: str(job.attempt)}
        if interface := own_addresses().get(own):
            environment.setdefault("GLOO_SOCKET_IFNAME", interface)
            environment.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # this one, not all that begin like it
        complete_environment(environment, len(devices), on_gpu)
        world = {str(number): [NO_DEVICE] * len(one.devices) for number, one in enumerate(job.hosts)}
        program = ["deltalm_ds.launch.rank", str(job.logs), *job.program]
        command = launcher_command(world | {str(self._index): devices}, self._index, address, port, program)
        # Not our own stdout: the connection is to end with this process, also where ranks live on.
        with open(launcher_log(job.logs, host.name), "ab") as log:
            self._launcher = Launcher(command, environment, log)
        self._processes = RankProcesses(self._launcher, self._job.ranks_of(self._index))
        self._say({"started": self._launcher.pid})

    def _stop(self, grace_s: float, why: str) -> None:
        """Ask the ranks to save and end, and kill what is left after the grace; the shortest grace counts."""
        by = time.monotonic() + grace_s
        if self._end_by is None or by < self._end_by:
            self._end_by, self._why = by, self._why or why

    def _heard_nothing(self) -> bool:
        return self._end_by is None and time.monotonic() - self._heard > LOST_S

    def _is_over(self) -> bool:
        if self._launcher is None:
            return self._end_by is not None
        if self._end_by is not None and time.monotonic() > self._end_by:
            return True
        return self._launcher.code() is not None and not self._launcher.others()

    def _look(self) -> None:
        if self._listener is not None:
            self._listener.serve()
        if self._launcher is not None:
            self._tell_of_ranks()
            if self._end_by is not None:
                self._launcher.ask_to_stop()  # again, as some may have started only after the last time
            if not self._launcher_told and self._launcher.code() is not None:
                self._launcher_told = True
                self._say({"launcher": self._launcher.code(), "left": len(self._launcher.others())})
        if time.monotonic() - self._beaten >= BEAT_S:
            self._beat()

    def _tell_of_ranks(self) -> None:
        if self._processes is None:
            return
        for message in self._processes.look():
            self._say(message)

    def _beat(self) -> None:
        self._beaten, self._beats = time.monotonic(), self._beats + 1
        beats = read_beats(Path(self._job.run), self._job.attempt) if self._launcher else {}
        own = self._job.ranks_of(self._index)
        self._say({"beat": self._beats, "ranks": {rank: vars(beat) for rank, beat in beats.items() if rank in own}})

    def _read(self, seconds: float) -> list[dict[str, Any]]:
        """What the supervisor says, waiting for it at most so long."""
        if not self._selector.select(seconds):
            return []
        try:
            data = os.read(sys.stdin.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(sys.stdin.fileno())
            self._stop(GRACE_S, "the supervisor is gone")
            return []
        self._heard = time.monotonic()
        *lines, self._unread = (self._unread + data).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]

    def _say(self, message: dict[str, Any]) -> None:
        try:
            print(json.dumps(message), flush=True)
        except OSError:
            self._stop(GRACE_S, "the supervisor is gone")
            with suppress(OSError):  # the interpreter would try once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _named_first(name: str, addresses: dict[str, str]) -> list[str]:
    """The addresses, first those that this host's name or the supervisor's connection stands for."""
    preferred = set(os.environ.get("SSH_CONNECTION", "").split()[2:3])
    with suppress(OSError):
        preferred |= {str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET)}
    return sorted(addresses, key=lambda one: (one.startswith("127."), one not in preferred))


def has_gpus(devices: Path = Path("/dev")) -> bool:
    """Whether this host has NVIDIA's, whatever CUDA_VISIBLE_DEVICES says; a driver that does not answer is one, too."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except Exception:  # no driver, no library, or an error of either
        return any(devices.glob("nvidia[0-9]*"))


def main(job: str, index: str) -> None:
    """Entry point."""
    Agent(read_job(Path(job)), int(index)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
