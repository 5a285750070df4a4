"""Processes in the shape of DeepSpeed's launcher: a runner, below it a launcher, below that two ranks.

`python fake_launcher.py ROLE DIRECTORY BEHAVIOUR TESTER_PID`: every process leaves its pid in DIRECTORY, and the names
of the signals it gets.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.02


def main(role: str, directory: Path, behaviour: str, tester: int) -> int:
    signal.signal(signal.SIGTERM, lambda *_: (directory / f"{role}.SIGTERM").touch())
    if role.startswith("rank"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # as a rank does; the launcher has it held back
    (directory / f"{role}.starting").write_text(str(os.getpid()))
    (directory / f"{role}.starting").rename(directory / f"{role}.pid")  # from here on it can be sent signals
    if role.startswith("rank"):
        return rank(role, directory, behaviour, tester)
    if behaviour == "late" and role == "launcher":
        os.kill(tester, signal.SIGTERM)
        time.sleep(1)
    below = ["launcher"] if role == "runner" else ["rank0", "rank1"]
    children = [start(name, directory, behaviour, tester) for name in below]
    if behaviour == "launcher_dies":
        await_files(directory, "rank0.pid", "rank1.pid")
        return 9
    return max(child.wait() for child in reversed(children))


def start(role: str, directory: Path, behaviour: str, tester: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, role, str(directory), behaviour, str(tester)]
    return subprocess.Popen([*command, *(["deepspeed.launcher.launch"] if role == "launcher" else [])])


def rank(role: str, directory: Path, behaviour: str, tester: int) -> int:
    if behaviour.isdecimal():
        return int(behaviour)
    if behaviour == "one_has_ended" and role == "rank0":
        return 75  # and stays a zombie: the launcher waits for the other rank first
    if behaviour != "late":
        await_files(directory, "rank0.pid", "rank1.pid")
    if behaviour == "scheduler" and role == "rank0":
        os.killpg(os.getpgrp(), signal.SIGTERM)
    while behaviour == "unheeding":
        time.sleep(POLL_S)
    if behaviour in ("patient", "scheduler"):
        return wait_for_signal_or_file(directory, role)
    while behaviour.startswith("deaf") or not (directory / f"{role}.SIGTERM").exists():
        if behaviour not in ("late", "launcher_dies"):
            os.kill(tester, signal.SIGINT if behaviour == "deaf_to_ctrl_c" else signal.SIGTERM)
        time.sleep(POLL_S)
    time.sleep(5 * POLL_S)  # saving takes its time
    (directory / f"{role}.saved").touch()
    return 75


def wait_for_signal_or_file(directory: Path, role: str) -> int:
    while not (directory / f"{role}.SIGTERM").exists():
        if (directory / "finish").exists():
            return 0
        time.sleep(POLL_S)
    return 75


def await_files(directory: Path, *names: str) -> None:
    while not all((directory / name).exists() for name in names):
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
