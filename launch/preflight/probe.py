"""`python -m deltalm_ds.launch.preflight.probe FOLDER INDEX`: tells what a host is like, as JSON (`facts.py`).

FOLDER is in the run directory's file system; request.json in it says what to look at, and hosts find each other there,
which shows whether they share it. What cannot be found out is told in place of it, and keeps nothing else from being
told. GPUs and PyTorch are asked by processes of their own: a driver that hangs is a fact as well.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import deltalm_ds
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json, sha256_of, write_json
from deltalm_ds.launch.meeting import Listener, own_addresses, reached
from deltalm_ds.threads import usable_cores

BEGAN = time.monotonic()
CLOCK, TOLD = "deltalm_clock", "deltalm_facts"  # the keys of the lines that are for the supervisor
REQUEST, MEETING, LOCKED = "request.json", "meeting.json", "lock"  # in FOLDER
PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "sentencepiece", "triton", "safetensors", "pydantic", "psutil")
DEVICES_S = 90.0  # for a driver to answer, and for PyTorch to be imported from a slow file system
LAST_S = 60.0  # then this process ends, whatever hangs
POLL_S = 0.2
WHOLE_FILE_BYTES = 4 << 20  # of a larger one, its size and both ends are looked at


def main(folder: Path, index: int) -> None:
    """Entry point."""
    tell_clock()
    until, asked, devices = time.monotonic(), dict[str, Callable[[], Any]](), ["nvml"]
    try:
        request = read_json(folder / REQUEST)
    except InputError as error:  # nothing of it can be looked at
        asked["folder"] = partial(_fail, error)
    else:
        until, devices = until + request["wait_s"], request["devices"]
        asked = {
            "network": partial(network, folder, index, request["port"], until),
            "folder": partial(shared_folder, folder, index, request["num_hosts"], until),
            "files": partial(checksums, request["files"]),
            "inputs": partial(inputs, **request["inputs"]),
        }
    until = max(until, time.monotonic() + DEVICES_S)
    signal.alarm(int(until - time.monotonic() + LAST_S))
    answers = {name: partial(_answer, _ask_devices(name), until) for name in devices}
    parts: dict[str, Callable[[], Any]] = {**asked, "code": code, "limits": limits, **answers}
    own = {"host": socket.gethostname(), "python": platform.python_version(), "packages": packages()}
    facts = {**own, **{name: known(part) for name, part in parts.items()}}
    tell_clock()
    tell(TOLD, facts)
    signal.alarm(0)


def tell_clock() -> None:
    """Print what time it is here, and for how many seconds this process has run at least."""
    tell(CLOCK, [time.time(), time.monotonic() - BEGAN])


def tell(key: str, value: Any) -> None:
    """Print a line for the supervisor; what else a login prints is not one."""
    print(json.dumps({key: value}), flush=True)


def known(part: Callable[[], Any]) -> Any:
    """A part of the facts, or why it is not known."""
    try:
        return part()
    except InputError as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)}
    except Exception as error:  # a host may be broken in any way
        return {"error": f"{type(error).__name__}: {error}"}


def _fail(error: InputError) -> None:
    raise error


def packages() -> dict[str, str | None]:
    """The versions that are installed, by their metadata."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def code() -> dict[str, Any]:
    """Our own code: two hosts with one checksum run the same."""
    root = Path(deltalm_ds.__file__).resolve().parent
    digest = hashlib.sha256()
    names = [os.path.join(top, name) for top, _, files in os.walk(root, followlinks=True) for name in files]
    for name in sorted(name for name in names if not name.endswith((".pyc", ".pyo"))):
        digest.update(f"{os.path.relpath(name, root)}\0{sha256_of(name)}\n".encode())
    command = ["git", "-C", str(root.parent), "rev-parse", "HEAD"]
    commit = ""
    if (root.parent / ".git").exists():
        with suppress(OSError):
            commit = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.strip()
    version = deltalm_ds.__version__
    return {"version": version, "commit": commit or None, "checksum": digest.hexdigest(), "path": str(root)}


def checksums(paths: Mapping[str, str]) -> dict[str, str | None]:
    """Of files; None for one that is not there."""
    return {name: sha256_of(path) if Path(path).is_file() else None for name, path in paths.items()}


def inputs(
    vocabulary: str, data: Mapping[str, str], initial_model: str | None, text: tuple[str, str] | None
) -> dict[str, Any]:
    """What tells the things that a recipe reads from others of the same path, or what is wrong with one; by its key.

    Args:
        vocabulary, initial_model: their paths.
        data: paths of data sets, by the keys of the recipe that name them.
        text: directory and split of text to validate with.
    """
    from deltalm_ds.runs.checkpoints import model_directory
    from deltalm_ds.vocabulary import Vocabulary

    found = {"vocabulary": known(lambda: Vocabulary.load(vocabulary).hash)}
    found |= {key: known(partial(_data_set, Path(path))) for key, path in data.items()}
    if initial_model is not None:
        found["initial_model"] = known(lambda: directory_digest(model_directory(Path(initial_model)), "*"))
    if text is not None:
        found["validation.text"] = known(lambda: directory_digest(Path(text[0]), f"{text[1]}.*"))
    return found


def _data_set(path: Path) -> str:
    """The checksum of its manifest, if all its files are there and of their size."""
    from deltalm_ds.data.manifest import Manifest, size_fault

    manifest = Manifest.read(path)
    for shard in (shard for corpus in manifest.corpora for shard in corpus.shards):
        if fault := size_fault(path / shard.file, shard):
            raise InputError(fault)
    return manifest.checksum


def directory_digest(directory: Path, pattern: str) -> str:
    """Tells files of a directory from others by names, sizes and content; of large files, both ends of it."""
    paths = sorted(path for path in directory.glob(pattern) if path.is_file())
    if not paths:
        raise InputError(f"{directory / pattern} is not there.")
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(WHOLE_FILE_BYTES))
            file.seek(max(file.tell(), size - WHOLE_FILE_BYTES))
            digest.update(file.read())
    return digest.hexdigest()


def limits() -> dict[str, Any]:
    """What a process may have here."""
    open_files, locked = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK))
    shared = Path("/dev/shm")
    return {
        "open_files": None if open_files == resource.RLIM_INFINITY else open_files,
        "locked_bytes": None if locked == resource.RLIM_INFINITY else locked,
        "shared_memory_bytes": psutil.disk_usage(str(shared)).free if shared.is_dir() else None,
        "memory_bytes": psutil.virtual_memory().available,
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
    }


def network(folder: Path, index: int, port: int, until: float) -> dict[str, Any]:
    """How this host reaches the first one, which listens for as long as its probe runs.

    Args:
        folder: where the first host says how to reach it.
        index: of this host.
        port: to listen at; 0: any.
        until: when to stop waiting for the first host, of the monotonic clock.
    """
    port_error, meeting = None, folder / MEETING
    if index == 0:
        try:
            listener = Listener(port)
        except OSError as error:
            port_error, listener = error.strerror, Listener()  # the way to this host can be tried all the same
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        write_json(meeting, {"addresses": list(own_addresses()), "port": listener.port, "word": listener.word})
    while time.monotonic() < until and not (_is_there(meeting) or gone(folder, 0).exists()):
        time.sleep(POLL_S)
    found = reached(**read_json(meeting)) if meeting.exists() else {}
    names, stats = own_addresses(), psutil.net_if_stats()
    of_address = {own: names[own] for own in found.values() if own in names}
    interfaces = {own: (name, stats[name].speed, stats[name].mtu) for own, name in of_address.items()}
    return {"port_error": port_error, "reached": found, "interfaces": interfaces, "links": _links()}


def _serve(listener: Listener) -> None:
    while True:
        listener.serve()
        time.sleep(POLL_S)


def _links(root: Path = Path("/sys/class/infiniband")) -> dict[str, dict[str, str]]:
    """Ports of InfiniBand and RoCE, as the kernel tells of them."""
    found = {}
    for port in sorted(root.glob("*/ports/*")):
        with suppress(OSError):
            state, rate = ((port / name).read_text().strip() for name in ("state", "rate"))
            found[f"{port.parent.parent.name}/{port.name}"] = {"state": state.split(": ")[-1], "rate": rate}
    return found


def shared_folder(folder: Path, index: int, num_hosts: int, until: float) -> dict[str, Any]:
    """What this host sees of the folder, once all hosts have left a file there or are gone, or the time is over.

    Args:
        folder: where they do.
        index: of this host.
        num_hosts: of all.
        until: when to stop waiting for others, of the monotonic clock.
    """
    _seen(folder, index).touch()
    with open(folder / LOCKED, "r+b") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
            lock = "free"
        except BlockingIOError:
            lock = "held"
        except OSError as error:
            lock = str(error.strerror)
    everybody = range(num_hosts)
    for other in everybody:
        while time.monotonic() < until and not (_is_there(_seen(folder, other)) or gone(folder, other).exists()):
            time.sleep(POLL_S)
    space = os.statvfs(folder)
    return {
        "device": _mounted(folder),
        "free_bytes": space.f_bavail * space.f_frsize,
        "free_files": space.f_favail if space.f_files else None,
        "sees": [other for other in everybody if _seen(folder, other).exists()],
        "lock": lock,
    }


def gone(folder: Path, index: int) -> Path:
    """The file by which the supervisor tells that a host's probe has ended: nobody need wait for it."""
    return folder / f"gone_{index}"


def _seen(folder: Path, index: int) -> Path:
    return folder / f"seen_{index}"


def _is_there(path: Path) -> bool:
    """Without what a network's file system remembers of the directory: a change of our own makes it look again."""
    if path.exists():
        return True
    with suppress(OSError):
        own = path.with_name(f"look_{socket.gethostname()}_{os.getpid()}")
        own.touch()
        own.unlink()
    return path.exists()


def _mounted(path: Path) -> str:
    """The file system that holds a path: `nfs4 server:/home`."""
    parts = [part for part in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(part.mountpoint)]
    found = max(parts, key=lambda part: len(part.mountpoint), default=None)
    return f"{found.fstype} {found.device}" if found else "unknown"


def _ask_devices(what: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "deltalm_ds.launch.preflight.probe_devices", what]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _answer(child: subprocess.Popen[bytes], until: float) -> Any:
    """What it found, the last line of its output."""
    try:
        output, errors = child.communicate(timeout=max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.kill()  # in a driver it may hang on; it is not waited for
        raise InputError(f"no answer within {DEVICES_S:.0f} s") from None
    lines = output.decode(errors="replace").strip().splitlines()
    if child.returncode or not lines:
        said = errors.decode(errors="replace").strip().splitlines()
        raise InputError(said[-1] if said else f"ended with exit code {child.returncode}")
    return json.loads(lines[-1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
