"""What is measured of a machine once and remembered in its user's cache, a file for each kind of measurement."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.processor import processor_name

LIMITS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")  # environment: instructions that the libraries may use


def machine() -> str:
    """What rates depend on besides the product: processor, instructions, threads, PyTorch, precision of float32."""
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    parts = [processor_name(), torch.backends.cpu.get_cpu_capability(), *limits, f"{torch.get_num_threads()} threads"]
    return ", ".join([*parts, f"torch {torch.__version__}", f"float32 {torch.get_float32_matmul_precision()}"])


def memory_path(name: str) -> Path:
    """The file of a kind of measurement; OSError where this user has no home directory, as in some containers."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "deltalm_ds" / f"{name}.json"
    except RuntimeError as error:
        raise OSError("this user has no home directory") from error


def read_memory(path: Path) -> dict[str, Any]:
    """What is remembered; nothing if there is no file, or a damaged one, which the next measurement replaces."""
    if not path.exists():
        return {}
    try:
        memory = read_json(path)
    except InputError:
        return {}
    return memory if isinstance(memory, dict) else {}


@contextmanager
def locked_memory(name: str) -> Iterator[Path]:
    """The file of a kind of measurement, held: of two processes the second need not measure any more."""
    path = memory_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
