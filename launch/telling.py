"""What a supervisor tells: lines on the terminal, events of the run, the hook that gets each, and what ranks wrote."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltalm_ds.launch.rank import log_path
from deltalm_ds.runs.events import record_event, time_text

HOOK_S = 60.0  # that a hook may take
_LAST_LINES, _TAIL_BYTES = 12, 1 << 14
_BLOCK_BYTES = 1 << 16


class Teller:
    """Records events of a launch, and gives each to the hook, in the background.

    Args:
        run: the run directory.
        hook: a shell command, or none.
    """

    def __init__(self, run: Path, hook: str | None) -> None:
        self._run, self._hook = run, hook
        self._hooks: list[threading.Thread] = []
        self._unrecorded: list[dict[str, Any]] = []

    def event(self, kind: str, **values: Any) -> None:
        """Record it; what the disk does not take is recorded with a later event, in order and with its own time."""
        content = {"time": time_text(), "kind": kind, **values}
        self._unrecorded.append(content)
        with suppress(OSError):
            while self._unrecorded:
                record_event(self._run, **self._unrecorded[0])
                del self._unrecorded[0]
        if self._hook is not None:
            content = {**content, "run": str(self._run)}
            thread = threading.Thread(target=self._call, args=(self._hook, content), daemon=True)
            thread.start()
            self._hooks = [*(one for one in self._hooks if one.is_alive()), thread]

    def await_hooks(self) -> None:
        """Those that are at work still."""
        for thread in self._hooks:
            thread.join(HOOK_S)

    def _call(self, hook: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, ensure_ascii=False) + "\n"
        try:
            done = subprocess.run(
                hook, shell=True, input=text.encode(errors="backslashreplace"), capture_output=True, timeout=HOOK_S
            )
            fault = f"exit code {done.returncode}" if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            fault = f"{error}"
        if fault:
            with suppress(OSError):
                record_event(self._run, "hook failed", event=content["kind"], reason=fault)


class Follower:
    """Shows what rank 0 writes, as it comes."""

    def __init__(self, logs: Path) -> None:
        self._path, self._at = log_path(logs, 0), 0

    def show(self) -> None:
        """What is new, on stderr."""
        with suppress(OSError), open(self._path, "rb") as file:
            file.seek(self._at)
            while new := file.read(_BLOCK_BYTES):
                self._at += len(new)
                sys.stderr.write(new.decode(errors="replace"))
            sys.stderr.flush()


def last_lines(logs: Path, ranks: Sequence[int]) -> dict[int, list[str]]:
    """The last lines of the logs of ranks; of those that have none, nothing."""
    found = {}
    for rank in ranks:
        with suppress(OSError), open(log_path(logs, rank), "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
            found[rank] = [line for line in lines if line.strip()][-_LAST_LINES:]
    return found
