"""The supervisor's connections to its agents: an ssh process for each, lines of JSON both ways.

ClusterShell serves commands that come to their end (`remote.py`). Here each connection lives as long as the attempt, is
written to every second, and is let go of when its other end is silent, by a loop that has other things to do; in
ClusterShell's the task would be the loop.
"""

import contextlib
import json
import os
import selectors
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from deltalm_ds.launch.remote import CONNECT_TIMEOUT_S, SSH_FAILED, SSH_OPTIONS, Outcome, require_ssh, ssh_failure

MOST_WORDS = 20  # lines of stderr that are kept
_OWN = ("-oBatchMode=yes", f"-oConnectTimeout={CONNECT_TIMEOUT_S}", "-oControlMaster=no", "-oControlPath=none")


@dataclass
class _Connection:
    name: str
    process: "subprocess.Popen[bytes]"
    unread: bytes = b""
    words: list[str] = field(default_factory=list)
    is_open: bool = True
    has_spoken: bool = False

    def hear_stderr(self, data: bytes) -> None:
        self.words = [*self.words, *data.decode(errors="replace").splitlines()][-MOST_WORDS:]


class Connections:
    """Commands on hosts whose stdin and stdout are ours.

    Args:
        names: of the hosts, as ssh takes them.
        commands: for the shell of each.
    """

    def __init__(self, names: Sequence[str], commands: Sequence[str]) -> None:
        require_ssh()
        self._selector = selectors.DefaultSelector()
        self._all: list[_Connection] = []
        for number, (name, command) in enumerate(zip(names, commands, strict=True)):
            line = ["ssh", *shlex.split(SSH_OPTIONS), *_OWN, name, command]
            pipe = subprocess.PIPE
            # A session of its own: Ctrl-C is for the supervisor, which ends what it has started.
            process = subprocess.Popen(line, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe)
            self._all.append(_Connection(name, process))
            for stream in (process.stdout, process.stderr, process.stdin):
                os.set_blocking(_stream(stream).fileno(), False)
            self._selector.register(_stream(process.stdout), selectors.EVENT_READ, (number, True))
            self._selector.register(_stream(process.stderr), selectors.EVENT_READ, (number, False))

    def send(self, number: int, message: dict[str, Any]) -> None:
        """Write a line; it is lost where nobody reads any more, which shows by what is not heard."""
        connection = self._all[number]
        if connection.is_open:
            with contextlib.suppress(OSError):
                os.write(_stream(connection.process.stdin).fileno(), json.dumps(message).encode() + b"\n")

    def read(self, seconds: float) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str, bool]]]:
        """What has come, waiting for it at most so long.

        Returns:
            Messages; and connections that have ended, with what was said, and whether it was ssh that failed.
        """
        messages: list[tuple[int, dict[str, Any]]] = []
        ended: list[tuple[int, str, bool]] = []
        for key, _ in self._selector.select(seconds):
            number, is_stdout = key.data
            connection = self._all[number]
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fileobj)
                if is_stdout and connection.is_open:
                    ended.append((number, *self._end(connection)))
            elif is_stdout:
                *lines, connection.unread = (connection.unread + data).split(b"\n")
                found = [(number, message) for line in lines if (message := _message(line)) is not None]
                connection.has_spoken |= bool(found)
                messages += found
            else:
                connection.hear_stderr(data)
        return messages, ended

    def drop(self, number: int) -> None:
        """End a connection, if it is not ended yet."""
        connection = self._all[number]
        connection.is_open = False
        if connection.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(connection.process.pid, signal.SIGKILL)
            connection.process.wait()

    def close(self) -> None:
        """End all."""
        for number in range(len(self._all)):
            self.drop(number)
            process = self._all[number].process
            for stream in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError):
                    _stream(stream).close()
        self._selector.close()

    def _end(self, connection: _Connection) -> tuple[str, bool]:
        with contextlib.suppress(OSError):
            connection.hear_stderr(os.read(_stream(connection.process.stderr).fileno(), 1 << 16))
        connection.is_open = False
        try:
            code = connection.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = None
        failure = None
        if not connection.has_spoken and code:
            failure = ssh_failure(connection.name, Outcome(code=code, error_lines=connection.words))
        said = ": ".join(failure or ()) or " / ".join(word.strip() for word in connection.words if word.strip())
        return said, code == SSH_FAILED


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


def _message(line: bytes) -> dict[str, Any] | None:
    """A line of JSON; None for anything else, as a login shell may greet."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
