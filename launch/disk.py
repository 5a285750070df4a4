"""Whether the run directory can be written, looked at beside the supervision: a disk may take its time to answer."""

import os
import socket
import threading
from pathlib import Path

from deltalm_ds.runs.silence import Silence

LOOK_S = 2.0
END_S = 1.0  # for a look at the end; one that waits for the disk is not waited for
PROBE_BYTES = 1 << 16  # less may find room in the last block of something


class DiskWatch(threading.Thread):
    """Writes a little file now and then, and removes it; says where that takes long, as nobody else may be able to.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(name="disk watch", daemon=True)
        self._path = run / "launch" / f".probe.{socket.gethostname()}.{os.getpid()}"
        self._ended = threading.Event()
        self._fault = self._told = ""
        self._silence = Silence(run, "supervisor")

    def run(self) -> None:
        """Look until the end."""
        while not self._ended.wait(LOOK_S):
            probe, waited_s = threading.Thread(target=self._probe, name="disk probe", daemon=True), 0.0
            probe.start()
            while probe.is_alive() and not self._ended.is_set():
                self._silence.look(waited_s)
                probe.join(LOOK_S)
                waited_s += LOOK_S  # not by a clock: time in which we were stopped does not count
            self._silence.look(0.0)

    def _probe(self) -> None:
        self._fault = fault_of(self._path)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join(END_S)

    def news(self) -> str | None:
        """Why it cannot be written, or nothing where it can be again; None if that was told."""
        fault = self._fault
        if fault == self._told:
            return None
        self._told = fault
        return fault


def fault_of(probe: Path) -> str:
    """Why a file of some bytes cannot be written under this name; empty if it can. No such file is left.

    Args:
        probe: the file's path.
    """
    fault = ""
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        fault = error.strerror or str(error)
    try:
        probe.unlink(missing_ok=True)
    except OSError as error:
        fault = fault or error.strerror or str(error)
    return fault
