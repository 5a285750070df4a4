"""Disks of some megabytes that root mounts, to be full or read-only for a while, or not to answer."""

import os
import shutil
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

LOOK_S = 0.02  # for room


class SmallDisk:
    """Mounted for as long as the context lasts.

    Args:
        path: where.
        megabytes: its size.

    Raises:
        RuntimeError: it cannot be mounted; one sentence.
    """

    def __init__(self, path: Path, megabytes: int) -> None:
        self.path, self._megabytes = path, megabytes
        self._filler = path / "filler"
        self._is_filled, self._ended = threading.Event(), threading.Event()

    def __enter__(self) -> "SmallDisk":
        self.path.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self._megabytes}m", "tmpfs", str(self.path)]
        if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
            raise RuntimeError("Only root can mount a small disk, and not in every container.")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        self.path.rmdir()

    def fill(self) -> None:
        """To the last byte, and whatever others remove, too, until `free`."""
        self._is_filled.clear()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._thread.start()
        self._is_filled.wait()

    def free(self) -> None:
        """Undo `fill`."""
        self._ended.set()
        self._thread.join()
        self._ended.clear()
        self._filler.unlink()

    def _fill(self) -> None:
        with open(self._filler, "ab", buffering=0) as file:
            while not self._ended.is_set():
                try:
                    file.write(bytes(1 << 16))
                except OSError:
                    self._is_filled.set()
                    self._ended.wait(LOOK_S)

    def set_read_only(self, is_read_only: bool) -> None:
        """No file is opened for writing, made, renamed or removed any more, by root neither; those open are written.

        A disk with files open for writing cannot be mounted read-only.
        """
        change = "+i" if is_read_only else "-i"
        subprocess.run(["chattr", "-R", "-f", change, str(self.path)], check=False)  # what is just removed is no fault


class HangingDisk:
    """Mounted for as long as the context lasts; whoever writes to it while it hangs waits, and cannot be killed.

    Args:
        image: a file that becomes the disk.
        path: where it is mounted.
        megabytes: its size.

    Raises:
        RuntimeError: it cannot be mounted; one sentence.
    """

    def __init__(self, image: Path, path: Path, megabytes: int) -> None:
        self._image, self.path, self._megabytes = image, path, megabytes

    def __enter__(self) -> "HangingDisk":
        self.path.mkdir()
        self._image.write_bytes(b"")
        os.truncate(self._image, self._megabytes << 20)
        commands = [["mkfs.ext4", "-q", str(self._image)], ["mount", "-o", "loop", str(self._image), str(self.path)]]
        if os.getuid() or not all(map(shutil.which, ("mkfs.ext4", "mount", "fsfreeze"))):
            raise RuntimeError("Only root can mount a disk that hangs, with mkfs.ext4, mount and fsfreeze.")
        if any(subprocess.run(command, capture_output=True).returncode for command in commands):
            raise RuntimeError("A disk that hangs cannot be mounted in this container.")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        with suppress(subprocess.CalledProcessError):  # it does not hang
            self.hang(False)
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def hang(self, does_hang: bool) -> None:
        """From now on, or no more."""
        subprocess.run(["fsfreeze", "--freeze" if does_hang else "--unfreeze", str(self.path)], check=True)
